# Two commands from a fresh clone, with Python 3.11 or newer and a package registry: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/installed  ## makes a toy base model, tunes a LoRA adapter on it, tests it
	$(BIN)/python scripts/demo.py

test: .venv/installed-test  ## the default test suite
	$(BIN)/python -m pytest -q

test-all: .venv/installed-test  ## and the slow tests, and parity with PyTorch where it is installed
	$(BIN)/python -m pytest -q -m "not reference"
	$(BIN)/python -m pytest -q -m reference

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf .venv demo
