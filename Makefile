# Everything a contributor needs; `make help` explains. Only Python 3.11, make and gcc are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help test quick lint types clean

help: ## show what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed --editable '.[cpu,tensorflow,onnxsim,dev]'
	touch $@

test: $(VENV)/.dev ## run every test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

quick: $(VENV)/.dev ## run the tests that need no TensorFlow
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'

lint: $(VENV)/.dev ## check style
	$(BIN)/ruff check .

types: $(VENV)/.dev ## check types
	$(BIN)/mypy

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
