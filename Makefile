# make demo    ask the embedded model about a picture          make test       lint, types and tests
# make test-slow    what takes minutes or gigabytes            make clean      remove .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One exact version: on Linux an open range pulls gigabytes of CUDA, and the tests' torchvision belongs to one torch.
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0

.PHONY: demo test test-slow lint types clean

demo: $(VENV)/.installed
	@$(BIN)/fastvlm predict --image examples/receipt.png --prompt "What is the total?" --stats

test: lint types
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: $(VENV)/.installed-test
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[torch]"
	@touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --no-deps "$(TORCHVISION)"
	$(BIN)/pip install --quiet -e ".[test]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
