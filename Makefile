# Everything here needs only git, make, a C++ compiler and python3 with venv; each target sets up what it uses.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (asking for another one makes .venv anew)
#   PYTEST_ARGS=...     for `make test` and others, such as PYTEST_ARGS='tests/test_reference.py -x'
#   BENCH_ARGS=...      for `make bench`
#   GPU_ARGS=...        for `make gpu`, such as GPU_ARGS='logits random'
#   MUTANTS=...         for `make mutants`
#   FUZZ_SECONDS=...    how long each part of `make fuzz` searches (300)
#   WITH_CUDA=1         the CUDA kernels are built too, by PyPI's compiler where CUDA_HOME names none; no GPU is needed
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
OLDEST_TORCH := 2.11.0
CUDA_REQUIREMENTS := $(wildcard tests/requirements-cuda.txt)
DIST := build/dist

# ---- CUDA. Its kernels do not depend on the torch that is here. +PTX: whatever newer GPU is visible can run it too; more
# architectures: TORCH_CUDA_ARCH_LIST (each takes about a minute).
WITH_CUDA ?=
SITE = $$($(PY) -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
CUDA_ENV = $(if $(filter 1,$(WITH_CUDA)),env FORCE_CUDA=1 CUDA_HOME="$${CUDA_HOME:-$(SITE)/nvidia/cu13}" \
  TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-8.0+PTX}")

# ---- check-wheel: other torchs than .venv's
CUDA_VENV := .venv-cuda
CHECKED := build/check-wheel
CUDA_PY := $(CURDIR)/$(CUDA_VENV)/bin/python
FLOOR_PY := $(CURDIR)/$(CHECKED)/oldest/bin/python
TORCH_ABI = $$(sed -n 's/^STABLE_ABI = ("\(.*\)", "\(.*\)")/-D\1=\2/p' setup.py)
INCLUDES := import torch.utils.cpp_extension as of; print(*("-isystem " + path for path in of.include_paths()))
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
.PHONY: help demo test slow mutants gpu ptx sanitize fuzz wheel check-wheel lint format bench dist build clean distclean FORCE

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

mutants: $(STAMPS)/build  ## plant faults one at a time and see a test fail for each (an hour; MUTANTS=... those with that text)
	@$(RUN) tools/mutants/run.py $(MUTANTS)

gpu: FORCE  ## on a machine with a GPU: the tests there, CUDA's bits against the CPU's, sanitizers, times; one report
	@arch=$$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1); \
	[ -n "$$arch" ] || { echo "make gpu: expected a GPU, found none (nvidia-smi shows none)" >&2; exit 2; }; \
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$arch}" $(MAKE) --no-print-directory WITH_CUDA=1 build
	@$(RUN) tools/gpu/run.py $(GPU_ARGS)

ptx: $(STAMPS)/dev $(if $(CUDA_REQUIREMENTS),$(STAMPS)/cuda)  ## run the tests of the PTX interpreter, where it changed since they passed
	@$(RUN) tools/ptx/run_tests.py $(PYTEST_ARGS)

# Needs the C++ compiler alone, with its sanitizers.
sanitize:  ## run the CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, at the edge of unmapped memory
	@$(MAKE) --no-print-directory -j$$(nproc 2>/dev/null || echo 2) -f tests/sanitize/Makefile sanitize

# Atheris is no requirement of anything else: it has wheels for some Pythons, and the target says where it has none for this one.
FUZZ_SECONDS ?= 300
fuzz: $(STAMPS)/build  ## search for failures: libFuzzer on the CPU kernels (needs clang), Atheris on the Python interface
	@$(MAKE) --no-print-directory -j$$(nproc 2>/dev/null || echo 2) -f tests/sanitize/Makefile fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)
	@$(PY) -I -c 'import atheris' 2>/dev/null || $(PIP) --only-binary :all: atheris==3.0.0 || { \
	  echo "error: atheris has no wheel for $$($(PY) --version) here: another one with make PYTHON=python3.12" >&2; exit 1; }
	@mkdir -p build/fuzz/api
	@cd build/fuzz && PYTHONPATH="$(CURDIR)" $(CURDIR)/$(PY) -W ignore $(CURDIR)/tests/sanitize/fuzz_api.py api \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=300 -len_control=0 -print_final_stats=1

# What does not depend on torch: `make test` runs what executes PTX, and what asks the same kernels for their bits.
BITS := exact family_exact focal_exact formula_exhaustive half_exhaustive sums properties properties_layer \
  mutants gpu_report benchmarks recipes examples
NOT_OF_TORCH := $(addprefix --ignore=,$(filter-out tests/test_cuda_build.py,$(wildcard tests/test_cuda_*.py)) \
  $(BITS:%=tests/test_%.py))

# ninja has compiled what `make build` needed, and compiles only what is missing. The wheel's libraries are those in fused_logistic/.
wheel: $(STAMPS)/build  ## the wheel of what `make build` built, in dist/
	@rm -rf dist && mkdir -p dist $(dir $(BUILD_LOG))
	@$(CUDA_ENV) $(RUN) -c 'from setuptools import build_meta; build_meta.build_wheel("dist")' $(TO_BUILD_LOG)
	@ls -l dist/*.whl

# In a copy of the tree in which fused_logistic/ is the wheel's. The oldest torch borrows what it needs from .venv-cuda.
check-wheel: wheel $(CUDA_VENV)/.stamp  ## the wheel under a CUDA torch (5.5 GB) and under the oldest one that it supports; no GPU is needed
	@rm -rf $(CHECKED) && mkdir -p $(CHECKED)/copy
	@tar -cf - --exclude='./.[!c]*' --exclude=./build --exclude=./dist --exclude=./fused_logistic --exclude='*.egg-info' \
	  --exclude=__pycache__ . | tar -xf - -C $(CHECKED)/copy
	@$(PY) -m zipfile -e dist/*.whl $(CHECKED)/copy
	@for library in fused_logistic/*.so; do cmp $$library $(CHECKED)/copy/$$library || exit 1; done
	@echo "== the wheel and its self-check under torch $$($(CUDA_PY) -c 'import torch; print(torch.__version__)')"
	@cd $(CHECKED)/copy && $(CUDA_PY) -m fused_logistic.info
	@cd $(CHECKED)/copy && $(CUDA_ENV) PATH="$(CURDIR)/$(CUDA_VENV)/bin:$$PATH" $(CUDA_PY) $(PYTEST) $(NOT_OF_TORCH) $(PYTEST_ARGS)
	@echo "== the wheel under torch $(OLDEST_TORCH), the oldest that it supports"
	@$(CUDA_PY) -m venv --without-pip $(CHECKED)/oldest
	@$(CUDA_PY) -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(FLOOR_PY) -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth
	@$(FLOOR_PY) -m pip install -qq --disable-pip-version-check --ignore-installed --no-deps torch==$(OLDEST_TORCH) dist/*.whl
	@cd $(CHECKED) && $(FLOOR_PY) -I $(CURDIR)/tests/smoke.py
	@echo "== what of csrc knows torch, by the headers of that torch"
	@headers=$$($(FLOOR_PY) -I -c '$(INCLUDES)' 2>/dev/null); for source in $$(grep -l '#include <torch/' csrc/*.cpp csrc/*/*.cpp); do \
	  $(CXX) -w -fsyntax-only -std=c++20 $(TORCH_ABI) -DUSE_CUDA $$headers -isystem "$${CUDA_HOME:-$(SITE)/nvidia/cu13}/include" $$source || exit 1; \
	done

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

# The sdist holds what a build needs: a wheel is made from it, and installed into a fresh venv, which gets torch, pip and what a
# build needs by a .pth file that names .venv's packages (a second torch would be a large download); what is installed into it
# comes first, and the smoke test checks that this is what it sees.
dist: $(STAMPS)/dev  ## build the sdist, a wheel from it, and try that in a fresh venv
	@rm -rf $(DIST) && mkdir -p dist $(DIST) && rm -f dist/*.tar.gz
	@echo "== sdist, and a wheel from it (log: $(DIST)/build.log)"
	@$(RUN) -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' > $(DIST)/build.log 2>&1 \
	  && $(RUN) -m pip wheel -v --no-build-isolation --no-deps -w $(DIST) dist/*.tar.gz >> $(DIST)/build.log 2>&1 \
	  || { tail -n 100 $(DIST)/build.log >&2; exit 1; }
	@echo "== in a fresh venv"
	@$(PY) -m venv --without-pip $(DIST)/venv
	@echo "$(SITE)" > $$($(DIST)/venv/bin/python -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_dev.pth
	@$(DIST)/venv/bin/python -m pip install -qq --disable-pip-version-check --ignore-installed --no-deps $(DIST)/*.whl
	@cd $(DIST) && venv/bin/python -I $(CURDIR)/tests/smoke.py

build: $(STAMPS)/build  ## compile the extension, where csrc/ or setup.py changed since the last time

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist *.egg-info fused_logistic/*.so examples/output $(STAMPS)/build
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
	@echo "$(CURDIR)" > $@

# In place: the libraries lie in fused_logistic/, and .venv gets a file that names this folder. Compiled is what changed, which
# ninja knows. A .venv may outlive the libraries (git clean) and may have been built without CUDA, hence the look at the files.
BUILT := $(wildcard fused_logistic/libfused_logistic$(if $(filter 1,$(WITH_CUDA)),_cuda).so)
$(STAMPS)/build: $(STAMPS)/dev setup.py pyproject.toml $(SOURCES) $(if $(filter 1,$(WITH_CUDA)),$(STAMPS)/cuda) $(if $(BUILT),,FORCE)
	@$(PY) -I -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  echo "error: the headers of $$($(PY) --version) are missing (Debian and Ubuntu: apt install python3-dev)" >&2; exit 1; }
	@echo "== building fused_logistic (log: $(BUILD_LOG))"
	@mkdir -p $(dir $(BUILD_LOG)) && rm -f $(BUILD_LOG).failed
	@{ $(CUDA_ENV) $(RUN) setup.py build_ext --inplace 2>&1 || touch $(BUILD_LOG).failed; } | tee $(BUILD_LOG) \
	  | sed -un '/^fused_logistic: /p'; [ ! -e $(BUILD_LOG).failed ] || { tail -n 100 $(BUILD_LOG) >&2; exit 1; }
	@echo "$(CURDIR)" > "$(SITE)/fused_logistic.pth"
	@touch $@
