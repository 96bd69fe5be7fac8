# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
# `make test-gpu CONSTRAINTS=` keeps a torch that is in .venv.
CONSTRAINTS := -c constraints.txt
BIN := $(VENV)/bin
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test lint test-gpu clean

# An environment of another Python is made anew; one without pip, as after an interruption, gets it.
define environment
@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	$(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "error: this needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	$(PYTHON) -m venv --clear $(VENV); }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
endef

$(VENV)/.demo: pyproject.toml constraints.txt
	$(environment)
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[train,plots]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(environment)
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e ".[dev]"
	touch $@

demo: $(VENV)/.demo  ## the whole recipe on a laptop CPU, in two to three minutes
	rm -rf demo
	$(BIN)/python -m lrtrain.demo --out demo

test: $(VENV)/.dev  ## every test that needs no GPU
	$(BIN)/python -m pytest -n 2 -m "not gpu"

lint: $(VENV)/.dev  ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lrdata lrtrain

test-gpu: $(VENV)/.dev  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf $(VENV) demo .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
