# The two commands a fresh machine needs: `make demo` and `make test`. Both make the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal --durations=20

.PHONY: demo test test-slow test-all lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.benchmark --resume  # after an interruption: where it was

# Run before every commit.
test: $(VENV)/.installed
	$(PYTEST)

# Whole experiments, notebooks, killed processes; every annotated shape and type is checked here.
# SHARE=2/4 runs the second quarter of them alone.
test-slow: $(VENV)/.installed
	ODEJAX_CHECK_SHAPES=1 ODEJAX_SHARE=$(SHARE) $(PYTEST) -m slow

test-all: test test-slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV)
