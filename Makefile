# make demo | test | lint | docs | bench — each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint format docs bench clean

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noiseprop needs Python 3.11 or newer, not " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,ray,tensorboard,test,proof,docs,lint]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps torchattacks
	@touch $@

demo: .venv/.ready
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
