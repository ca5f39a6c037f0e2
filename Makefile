# The two commands a fresh machine needs: `make demo` and `make test`. Both make the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal --durations=20

.PHONY: demo test test-slow test-all lint docs clean

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

# The documentation site, in site/. A broken link, anchor or image fails.
docs: $(VENV)/.docs
	mkdir -p docs/figures && cp experiments/figures/*.png docs/figures/
	$(BIN)/python -m experiments.page --out docs/all_results.html
	$(BIN)/python -m zensical build --clean --strict
	$(BIN)/python -m docs_tools.check_site

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) site docs/figures docs/all_results.html
