# Two commands are all the set-up there is: `make demo` and `make test`.
# Each makes .venv and installs the pinned set when that has not been done yet.

PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Debian's python3 may lack ensurepip, so the environment is filled by the pip outside of it.
PIP := $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python
INSTALLED := $(VENV)/.installed
DEMO ?= demo-output
DOCS_INSTALLED := $(VENV)/.installed-docs
SITE := docs/_build/html

.PHONY: help install demo test test-cluster lint kernels unit slow notebooks docs site docs-blocks format clean

help:
	@echo "make demo           the whole chain on two small boxes; the report is in $(DEMO)/report"
	@echo "make test           lint, types, layers and the default tests"
	@echo "make test-cluster   the tests that start Ray, kill or wait"
	@echo "make slow           the tests that take minutes"
	@echo "make notebooks      run the notebooks of examples/notebooks"
	@echo "make docs           the site, in $(SITE), with every block of its pages run"
	@echo "make format         put the code in shape"

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps -e .
	touch $@

demo: $(INSTALLED)
	$(BIN)/cosmoflow demo --out $(DEMO) --overwrite

test: $(INSTALLED)
	$(MAKE) --no-print-directory -j2 lint kernels
	$(MAKE) --no-print-directory unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Once for all test processes.
kernels: $(INSTALLED)
	$(BIN)/python -m tests.kernels

# Two files at a time, those that start Ray one after the other (tests/conftest.py).
unit: kernels
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-cluster: kernels
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "cluster and not slow"

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# In kernels of .venv, one notebook after the other.
notebooks: $(INSTALLED)
	$(BIN)/python -m pytest -o addopts= -W default --nbmake --durations=0 examples/notebooks

$(DOCS_INSTALLED): docs/requirements.txt $(INSTALLED)
	$(PIP) install --quiet -r docs/requirements.txt
	touch $@

docs: site docs-blocks

# Warnings are errors, dead links among the pages included.
site: $(DOCS_INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs $(SITE)

# A page is run by one process, in a folder of its own.
docs-blocks: $(DOCS_INSTALLED) kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest docs -n 2 --dist loadfile -W default

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO) build dist docs/_build docs/reference/made .pytest_cache .mypy_cache .ruff_cache
