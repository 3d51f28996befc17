# Everything here needs only git, make, a C++ compiler and python3 with venv; each target sets up what it uses.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (asking for another one makes .venv anew)
#   PYTEST_ARGS=...     for `make test`, such as PYTEST_ARGS='tests/test_reference.py -x'
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
.PHONY: help demo test slow lint format typecheck bench build clean distclean FORCE

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(STAMPS)/build  ## the chain rule in numbers, logistic regression on real data, and the speed of the loss
	@$(RUN) examples/chain_rule.py
	@echo
	@$(RUN) examples/train_breast_cancer.py
	@echo
	@$(RUN) examples/time_loss.py

test: $(STAMPS)/build $(if $(CUDA_REQUIREMENTS),$(STAMPS)/cuda)  ## run the tests but the slow ones (PYTEST_ARGS=... goes to pytest)
	@$(RUN) -m pytest -m "not slow" $(PYTEST_ARGS)

slow: $(STAMPS)/build  ## run the tests that take more than ten seconds each: every float, 2^31 elements
	@$(RUN) -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMPS)/dev  ## check the form of Python (ruff) and C++ (clang-format)
	@failed=; \
	$(RUN) -m ruff check . || failed=1; \
	$(RUN) -m ruff format --check . || failed=1; \
	$(CXX_SOURCES) | xargs -0 -r $(VENV)/bin/clang-format --dry-run -Werror || failed=1; \
	echo "clang-format: $$($(CXX_SOURCES) | tr -cd '\0' | wc -c) files of csrc looked at"; \
	[ -z "$$failed" ]

format: $(STAMPS)/dev  ## bring Python and C++ into the form that `make lint` checks
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
	@$(CXX_SOURCES) | xargs -0 -r $(VENV)/bin/clang-format -i

typecheck: $(STAMPS)/dev  ## check the types of the package (mypy)
	@$(RUN) -m mypy

bench: $(STAMPS)/build  ## time the loss against its rivals in under three minutes (BENCH_ARGS=--full: the figures of the README)
	@$(RUN) -m benchmarks $(BENCH_ARGS)

build: $(STAMPS)/build  ## compile the extension, where csrc/ or setup.py changed since the last time

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist *.egg-info fused_logistic/*.so examples/output $(STAMPS)/installed $(STAMPS)/build
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find fused_logistic tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

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
