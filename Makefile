# Two commands matter: `make bench` (the main job on the embedded sample) and `make test`.
# ARGS goes to the command behind a target: make bench ARGS="--data DIR", make test ARGS="tests/report -x"
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help

# The stamp is made last: an installation that was broken off is taken up again, a finished one is left alone.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "quantvm needs Python 3.10 or newer, $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[sample,dev]'
	@touch $@

.PHONY: help install bench test lint format clean
help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with everything in it

bench: $(STAMP) ## the main job: quantize, compile, compare on the embedded sample images
	$(BIN)/quantvm run $(ARGS)

# Threads that wait must not spin: two test processes share the cores. Bytecode is kept, even where the environment says
# not to: without it each of the suite's many processes compiles the sources anew.
test: $(STAMP) ## the test suite
	OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## sort imports, format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and what tools have cached
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
