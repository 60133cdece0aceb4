PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint fuzz code

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,train,formats]"
	touch $@

demo: $(VENV)/installed  ## read a real 12-lead ECG, run the models on it, draw it
	$(BIN)/python -m ecgformers.spaces.demo --output demo_output

code: $(VENV)/installed  ## put the models' code beside their weights, to load them where ecgformers is not installed
	$(BIN)/python -c "from pathlib import Path; from ecgformers.publishing import write_code; \
		[write_code(path.parent) for path in Path('model_cards').glob('*/config.json')]"

test: $(VENV)/installed  ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/installed  ## style, and types in an installed copy: type checkers see no editable one
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	rm -rf build $(VENV)/typed
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(VENV)/typed .
	MYPYPATH=$(VENV)/typed $(BIN)/mypy --package ecgformers

fuzz: $(VENV)/installed  ## mutated files of every format, about an hour: 15,000 of each
	ECGFORMERS_FUZZ_EXAMPLES=15000 $(BIN)/python -m pytest tests/fuzz
