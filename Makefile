# One target a chore. Each makes the environment it needs, once, and again when pyproject.toml changes.
#
#   make demo                       install and run the main job
#   make demo ARGS="--seed 1"       the same with options of `medfedpure demo`
#   make test VENV=/somewhere/else  use another environment than .venv
#   make test PYTHON=python3.12     use another interpreter (3.11 or newer)

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
# torchattacks pins an old `requests`, which Flower does not accept: the two share no environment.
TORCHATTACKS ?= $(VENV)/torchattacks

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo pages test test-slow test-torchattacks compat lint types contracts docs golden bench study-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-all ## run the main job: federate, attack, defend, report
	$(BIN)/medfedpure demo $(ARGS)

test: $(VENV)/.installed-test ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

pages: $(VENV)/.installed-test ## run the blocks of README and docs as a reader would
	$(BIN)/python tests/pages.py $(ARGS)

test-slow: $(VENV)/.installed-fuzz ## run all tests, the slow ones included, and search each parser for a minute
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)
	$(BIN)/python tests/fuzz/run.py --seconds 60

test-torchattacks: $(TORCHATTACKS)/.installed ## run torchattacks on a defence, in an environment of its own
	$(TORCHATTACKS)/bin/python -m pytest -m slow -k torchattacks tests/plugins/test_interop.py $(ARGS)

compat: $(VENV)/.installed-dev ## test the wheel on every Python at hand, with oldest and newest dependencies
	$(BIN)/python tests/compat.py $(ARGS)

lint: $(VENV)/.installed-dev ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-all $(VENV)/.installed-dev ## check types
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev ## check who may import whom
	$(BIN)/lint-imports

docs: $(VENV)/.installed-all $(VENV)/.installed-docs ## draw the house and build the documentation into site/
	$(BIN)/python docs/house.py
	$(BIN)/mkdocs build --strict $(ARGS)

golden: $(VENV)/.installed-test ## record what plugins answer on phantoms, where it changed
	$(BIN)/python tests/golden.py $(ARGS)

bench: $(VENV)/.installed-all ## measure the demo over seeds 0, 1, 2
	$(BIN)/python -m benchmarks.demo $(ARGS)

study-check: $(VENV)/.installed-test ## run a miniature of every unit of the study
	$(BIN)/python -m pytest -m slow tests/test_study.py $(ARGS)

clean: ## remove what was built; the environment stays
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find medfedpure tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written only after its step succeeded: an interrupted one is done again.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-all: pyproject.toml $(VENV)/.created
	$(PIP) install --editable '.[all]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.created
	$(PIP) install --editable '.[all,test]'
	@touch $@ $(VENV)/.installed-all

$(VENV)/.installed-fuzz: pyproject.toml $(VENV)/.installed-test
	$(PIP) install --editable '.[all,test,fuzz]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.created
	$(PIP) install --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.created
	$(PIP) install --editable '.[docs]'
	@touch $@

$(TORCHATTACKS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TORCHATTACKS)
	$(TORCHATTACKS)/bin/python -m pip install --disable-pip-version-check --editable . torchattacks pytest
	@touch $@
