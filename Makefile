# make demo | test | lint | docs | bench — each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint format docs bench clean

# What the demo and the commands need; the rest, several times as large, is for tests, lint and the site.
.venv/.demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noiseprop needs Python 3.11 or newer, not " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	@echo "setting up .venv, which takes minutes: torch and what else the demo needs"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

.venv/.ready: .venv/.demo
	@echo "adding to .venv what tests, lint and the site need, which takes minutes"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,ray,tensorboard,triton,test,proof,docs,lint]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps torchattacks
	@touch $@

demo: .venv/.demo
	$(BIN)/noiseprop demo

test: .venv/.ready
	$(BIN)/pytest

slow: .venv/.ready
	$(BIN)/pytest -m slow

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/.ready
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv
