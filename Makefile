# Everything here needs only git, make, a C++ compiler and python3 with venv; each target sets up what it uses.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (asking for another one makes .venv anew)
#   PYTEST_ARGS=...     for `make test` and others, such as PYTEST_ARGS='tests/test_reference.py -x'
#   BENCH_ARGS=...      for `make bench`
# pip, torch and the build read their usual variables (PIP_*, MAX_JOBS, CXX, USE_CUDA, FORCE_CUDA, ...).
#
# A stamp is written only after its step has succeeded, so an interrupted step is done again and a finished one is not.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
# Not exported to every recipe: `python3` has to stay the user's own one where .venv is made with it. The build and
# torch look for ninja on PATH.
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY)
# -qq: neither progress nor warnings, errors with their output
PIP := $(RUN) -m pip install -qq --disable-pip-version-check

SOURCES := $(shell find csrc -type f 2>/dev/null)
BUILD_LOG := build/build.log
# a compiler's error is at the end of its log
TO_BUILD_LOG = > $(BUILD_LOG) 2>&1 || { tail -n 100 $(BUILD_LOG) >&2; exit 1; }
CUDA_REQUIREMENTS := $(wildcard tests/requirements-cuda.txt)
DIST := build/dist

# ---- check-cuda: a second venv, whose torch has CUDA
CUDA_VENV := .venv-cuda
CUDA_COPY := build/check-cuda
CUDA_PY := $(CURDIR)/$(CUDA_VENV)/bin/python
CUDA_TOOLKIT = $$($(CUDA_PY) -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
# +PTX: whatever newer GPU is visible can run it too
CUDA_RUN = env PATH="$(CURDIR)/$(CUDA_VENV)/bin:$$PATH" PYTHONPATH="$(CURDIR)/$(CUDA_COPY)" CUDA_HOME="$${CUDA_HOME:-$(CUDA_TOOLKIT)}" \
  FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-8.0+PTX}" $(CUDA_PY)
CUDA_SERVES := $(shell test "$$(cat $(CUDA_VENV)/.stamp 2>/dev/null)" = "$(CURDIR)" && echo yes)

# The checks run with -I: a PYTHONPATH of the user's says nothing about .venv.
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 10))
INTERPRETER := import sys; print(*sys.version_info[:2], sys.base_prefix)
# pip writes RECORD last: a distribution without one was cut off while it was installed, and pip would take it for whole.
WHOLE := import sys; from importlib.metadata import distributions as d; \
  sys.exit(sys.version_info < (3, 10) or not any(x.name == "pip" for x in d()) or any(x.files is None for x in d()))

# .venv serves as it is when it stands where it was made (its paths are absolute) and is of the PYTHON asked for, if any was.
# Plain `make` says nothing about PYTHON, and keeps a .venv that an earlier `make PYTHON=...` made.
SERVES := $(shell test -x $(PY) && test "$$(cat $(STAMPS)/dev 2>/dev/null)" = "$(CURDIR)" && echo yes)
ifneq ($(origin PYTHON),file)
SAME_PYTHON := $(shell test "$$($(PYTHON) -I -c '$(INTERPRETER)')" = "$$($(PY) -I -c '$(INTERPRETER)' 2>/dev/null)" && echo yes)
else
SAME_PYTHON := yes
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow ptx check-cuda lint format bench dist build clean distclean FORCE

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(STAMPS)/build  ## the chain rule in numbers, logistic regression on real data, and the speed of the loss
	@$(RUN) examples/chain_rule.py
	@echo
	@$(RUN) examples/train_breast_cancer.py
	@echo
	@$(RUN) examples/time_loss.py

# A file's tests stay in one process, which compiles the CUDA kernels once for all of them.
PYTEST := -m pytest -n auto --maxprocesses=4 --dist loadfile -m "not slow"

test: $(STAMPS)/build $(if $(CUDA_REQUIREMENTS),$(STAMPS)/cuda)  ## run the tests but the slow ones (PYTEST_ARGS=... goes to pytest)
	@$(RUN) $(PYTEST) $(PYTEST_ARGS)

slow: $(STAMPS)/build  ## run the slow tests (ten minutes): every float, 2^31 elements (13 GB), Inductor, two processes
	@$(RUN) -m pytest -m slow $(PYTEST_ARGS)

ptx: $(STAMPS)/dev $(if $(CUDA_REQUIREMENTS),$(STAMPS)/cuda)  ## run the tests of the PTX interpreter, where it changed since they passed
	@$(RUN) tools/ptx/run_tests.py $(PYTEST_ARGS)

# the planted faults: `make test` runs these tests, and they do not depend on torch
NOT_OF_TORCH := --ignore=tests/test_cuda_faults.py

# The whole extension for CUDA, in a copy, so that neither .venv nor the library built here is touched. CUDA_HOME: another
# toolkit than PyPI's; TORCH_CUDA_ARCH_LIST: more than one architecture (each takes about a minute).
check-cuda: $(CUDA_VENV)/.stamp  ## build the CUDA kernels against a CUDA torch (5.5 GB), run the tests; no GPU is needed
	@mkdir -p $(CUDA_COPY) && find $(CUDA_COPY) -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	@tar -cf - --exclude='./.[!c]*' --exclude=./build --exclude=./dist --exclude='*.so' --exclude='*.egg-info' \
	  --exclude=__pycache__ . | tar -xf - -C $(CUDA_COPY)
	@echo "== building the CPU and CUDA kernels in $(CUDA_COPY) (minutes; log: $(CUDA_COPY)/build/build.log)"
	@cd $(CUDA_COPY) && mkdir -p build && $(CUDA_RUN) setup.py build_ext --inplace $(TO_BUILD_LOG)
	@grep "fused_logistic: building" $(CUDA_COPY)/$(BUILD_LOG)
	@cd $(CUDA_COPY) && $(CUDA_RUN) -m fused_logistic.info
	@cd $(CUDA_COPY) && $(CUDA_RUN) $(PYTEST) $(NOT_OF_TORCH) $(PYTEST_ARGS)

lint: $(STAMPS)/dev  ## check the form of Python (ruff) and C++ (clang-format), and the types of the package (mypy)
	@failed=; \
	$(RUN) -m ruff check . || failed=1; \
	$(RUN) -m ruff format --check . || failed=1; \
	$(RUN) -m mypy || failed=1; \
	$(CXX_SOURCES) | xargs -0 -r $(VENV)/bin/clang-format --dry-run -Werror || failed=1; \
	echo "clang-format: $$($(CXX_SOURCES) | tr -cd '\0' | wc -c) files of csrc looked at"; \
	[ -z "$$failed" ]

format: $(STAMPS)/dev  ## bring Python and C++ into the form that `make lint` checks
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
	@$(CXX_SOURCES) | xargs -0 -r $(VENV)/bin/clang-format -i

bench: $(STAMPS)/build  ## time the loss against its rivals in under three minutes (BENCH_ARGS=--full: the figures of the README)
	@$(RUN) -m benchmarks $(BENCH_ARGS)

# The sdist holds what a build needs: the wheel is made from it, and it is installed as it is too. Each goes into a fresh
# venv, which gets torch, pip and what a build needs by a .pth file that names .venv's packages (a second torch would be a large
# download); what is installed into it comes first, and the smoke test checks that this is what it sees.
dist: $(STAMPS)/dev  ## build the sdist and the wheel, install each into a fresh venv and try it there
	@rm -rf dist $(DIST) && mkdir -p $(DIST)
	@echo "== sdist, and a wheel from it (log: $(DIST)/build.log)"
	@$(RUN) -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' > $(DIST)/build.log 2>&1 \
	  && $(RUN) -m pip wheel -v --no-build-isolation --no-deps -w dist dist/*.tar.gz >> $(DIST)/build.log 2>&1 \
	  || { tail -n 100 $(DIST)/build.log >&2; exit 1; }
	@for built in dist/*.whl dist/*.tar.gz; do \
	  venv=$(CURDIR)/$(DIST)/$${built##*.}; \
	  echo "== $$built in a fresh venv"; \
	  $(PY) -m venv --without-pip $$venv \
	  && $(PY) -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$($$venv/bin/python -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_dev.pth \
	  && PATH="$$venv/bin:$(CURDIR)/$(VENV)/bin:$$PATH" $$venv/bin/python -m pip install -qq --disable-pip-version-check \
	    --ignore-installed --no-deps --no-build-isolation $$built \
	  && (cd $(DIST) && $$venv/bin/python -I $(CURDIR)/tests/smoke.py) || exit 1; \
	done

build: $(STAMPS)/build  ## compile the extension, where csrc/ or setup.py changed since the last time

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist *.egg-info fused_logistic/*.so examples/output $(STAMPS)/installed $(STAMPS)/build
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find fused_logistic tests tools examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove .venv too
	rm -rf $(VENV) $(CUDA_VENV)

CXX_SOURCES := find csrc -type f '(' -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' ')' -print0

$(STAMPS)/dev: requirements-dev.txt $(if $(and $(SERVES),$(SAME_PYTHON)),,FORCE)
	@$(PYTHON) -I -c '$(SUPPORTED)' || { echo "error: Python 3.10 or newer is needed, and PYTHON=$(PYTHON) is not;" \
	  "name another one: make PYTHON=python3.12" >&2; exit 1; }
	@rm -f $@
	@if [ -z "$(SAME_PYTHON)" ] || ! $(PY) -I -c '$(WHOLE)' 2>/dev/null; then \
	  echo "== making $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"; \
	  $(PYTHON) -m venv --clear $(VENV) || { echo "error: python3's venv module is missing or failed" \
	    "(Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	fi
	@echo "== installing requirements-dev.txt into $(VENV) (torch is large: minutes, the first time)"
	@$(PIP) -r requirements-dev.txt
	@mkdir -p $(STAMPS) && echo "$(CURDIR)" > $@

$(STAMPS)/cuda: $(CUDA_REQUIREMENTS) $(STAMPS)/dev
	@echo "== installing $(CUDA_REQUIREMENTS) into $(VENV) (compiles the CUDA kernels for the tests; no GPU is needed)"
	@$(PIP) -r $(CUDA_REQUIREMENTS)
	@touch $@

$(CUDA_VENV)/.stamp: requirements-dev.txt tests/requirements-torch-cuda.txt $(if $(CUDA_SERVES),,FORCE)
	@$(PYTHON) -I -c '$(SUPPORTED)' || { echo "error: Python 3.10 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@echo "== making $(CUDA_VENV) with torch for CUDA (5.5 GB: minutes, the first time)"
	@$(PYTHON) -m venv --clear $(CUDA_VENV)
	@grep -v '^torch==' requirements-dev.txt > $(CUDA_VENV)/requirements.txt
	@$(CUDA_PY) -m pip install -qq --disable-pip-version-check -r tests/requirements-torch-cuda.txt \
	  -r $(CUDA_VENV)/requirements.txt
	@ln -sf libcudart.so.13 $(CUDA_TOOLKIT)/lib/libcudart.so  # PyPI's package lacks the name that the linker looks for
	@echo "$(CURDIR)" > $@

# Twice in two ways. The editable install makes the package importable and compiles from nothing in a temporary folder;
# after that, only what depends on the changed sources is compiled again. A .venv may outlive the built library
# (git clean), hence the look for the file itself.
$(STAMPS)/installed: $(STAMPS)/dev setup.py pyproject.toml
	@$(PY) -I -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  echo "error: the headers of $$($(PY) --version) are missing (Debian and Ubuntu: apt install python3-dev)" >&2; exit 1; }
	@echo "== building fused_logistic and installing it into $(VENV) (a minute or so; log: $(BUILD_LOG))"
	@mkdir -p $(dir $(BUILD_LOG))
	@$(RUN) -m pip install -v --disable-pip-version-check --no-build-isolation --no-deps -e . $(TO_BUILD_LOG)
	@touch $@

$(STAMPS)/build: $(STAMPS)/installed $(SOURCES) $(if $(wildcard fused_logistic/*.so),,FORCE)
	@if [ -n "$$(find csrc -type f -newer $(STAMPS)/installed)" ] || ! ls fused_logistic/*.so >/dev/null 2>&1; then \
	  echo "== building what changed in csrc/ (log: $(BUILD_LOG))"; \
	  mkdir -p $(dir $(BUILD_LOG)); \
	  $(RUN) setup.py build_ext --inplace $(TO_BUILD_LOG); \
	fi
	@touch $@
