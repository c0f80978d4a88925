# One place for the daily commands; `make help` lists them.
PYTHON ?= python
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help check test test-slow bench token image

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check: ## format, lint and types, without changing a file
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test: ## the fast test suite (minutes; real data files are used where FEDSIM_DATA has them)
	$(PYTHON) -m pytest -n auto --dist loadgroup

test-slow: ## training on MNIST and CIFAR-10, wheel in a clean environment (tens of minutes)
	$(PYTHON) -m pytest -m slow

token: ## a new secret for the docker cluster, readable by you only
	$(PYTHON) scripts/cluster.py token docker/token

image: ## the docker image of docker/compose.yaml
	docker build -f docker/Dockerfile -t fedsim .

bench: ## engine against hand-written loops, one table (a few minutes; close everything else)
	$(PYTHON) scripts/bench.py
