# The two commands a fresh machine needs: `make demo` and `make test`. Both make the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := $(VENV)-oldest

# Of the demo: by default an interrupted one is continued.
ARGS ?= --resume

PYTEST := -m pytest -n auto --dist worksteal --durations=20

.PHONY: demo test test-slow test-all test-oldest lint docs notebooks clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.benchmark $(ARGS)

# Run before every commit.
test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST)

# Whole experiments, notebooks, killed processes; every annotated shape and type is checked here.
# SHARE=2/4 runs the second quarter of them alone.
test-slow: $(VENV)/.installed-test
	ODEJAX_CHECK_SHAPES=1 ODEJAX_SHARE=$(SHARE) $(BIN)/python $(PYTEST) -m slow

test-all: test test-slow

# The fast tests on the oldest versions that pyproject.toml allows. These warn of what has become
# deprecated since.
test-oldest: $(OLDEST)/.installed-test
	$(OLDEST)/bin/python $(PYTEST) -W default::DeprecationWarning

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation site, in site/. A broken link, anchor or image fails.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m docs_tools.stage
	$(BIN)/python -m experiments.page --out build/docs/all_results.html
	$(BIN)/python -m zensical build --clean --strict
	$(BIN)/python -m docs_tools.check_site

# Runs the texts of all notebooks, or of NAMES="tour ssp", and writes the notebooks with outputs.
notebooks: $(VENV)/.installed-test
	$(BIN)/python -m docs_tools.notebooks $(NAMES)

.NOTPARALLEL:  # two calls of pip would write into one environment

# Pip shows what it downloads to whoever watches; a log gets one line.
define install
	@echo "Installing $(1) into $(VENV), which takes a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@[ -t 1 ] || quiet=--quiet; \
	$(BIN)/python -m pip install $$quiet --upgrade pip && \
	$(BIN)/python -m pip install $$quiet --editable "$(1)"
endef

# What is installed: these say the dependencies, and the version.
DECLARED := pyproject.toml odejax/_version.py

$(VENV)/.installed: $(DECLARED)
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: $(DECLARED)
	$(call install,.[test])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(DECLARED)
	$(call install,.[docs])
	@touch $(VENV)/.installed $@

$(OLDEST)/.installed-test: $(DECLARED)
	@echo "Installing the oldest versions into $(OLDEST), which takes a few minutes"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet uv
	@$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct \
		--editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) site build
