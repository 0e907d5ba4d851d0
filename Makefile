.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
# Tests run on all processors; one that has no test left takes some of another's.
PARALLEL := -n auto --dist worksteal
.PHONY: help setup demo test test-all lint format typecheck notebooks bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The stamp is newer than what it was made from as long as the environment is current.
.venv/.current: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

setup: .venv/.current ## make .venv, or bring it up to date

demo: setup ## train MQTransformer on the rooms for a few minutes, test it, show where the pictures are
	rm -rf runs/demo
	$(BIN)/taskformer fit --config configs/experiment/demo.yaml
	$(BIN)/taskformer test runs/demo

test: setup ## the tests, without the slow ones
	$(BIN)/python -m pytest $(PARALLEL)

test-all: setup ## all tests
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

lint: setup ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## mend what style can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup ## types
	$(BIN)/mypy --strict src

notebooks: setup ## run the notebooks
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

bench: setup ## measure what README reports beyond the demo
	$(BIN)/python benchmarks/real_photos.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/supernet.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/search.py

clean: ## remove caches and the environment; runs stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
