# make demo    ask the embedded model about a picture          make test       lint, types and tests
# make test-slow    what takes minutes or gigabytes            make clean      remove .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On Linux the default index serves a torch of several gigabytes; for the CPU's: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/pip install --quiet
PIP_TORCH := $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt

.PHONY: demo test test-slow lint types clean

demo: $(VENV)/.installed
	$(BIN)/fastvlm predict --image examples/receipt.png --prompt "What is the date?" --stats

# two processes of one thread each; the tests of a file share fixtures that are slow to make
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

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

$(VENV)/.installed: $(BIN)/python pyproject.toml requirements/torch.txt
	$(PIP_TORCH)
	$(PIP) -e ".[torch]"
	@touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml requirements/torch.txt requirements/no-deps.txt
	$(PIP_TORCH)
	$(PIP) --no-deps -r requirements/no-deps.txt
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
