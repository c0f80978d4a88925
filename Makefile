# One place for the daily commands; `make help` lists them.
PYTHON ?= python
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help check test test-slow test-job test-matrix docs soak bench token image

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check: ## format, lint and types, without changing a file
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test: ## the fast test suite (minutes; real data files are used where FEDSIM_DATA has them)
	$(PYTHON) -m pytest -n auto --dist loadgroup

test-slow: ## training on MNIST and CIFAR-10, storms of kill -9, wheel in a clean environment (tens of minutes)
	$(PYTHON) -m pytest -m slow

test-job: ## the default job on every promised Python that is found and on the oldest packages; one digest
	$(PYTHON) scripts/matrix.py

VERSIONS ?= 3.10 3.13
TESTS ?=
test-matrix: ## the fast suite on Python 3.10 and 3.13, those that are found; VERSIONS=3.12 TESTS=tests/test_basics.py choose
	$(PYTHON) scripts/matrix.py $(VERSIONS) -- $(TESTS)

docs: ## the documentation as a site: build/docs/index.html, to be opened as it lies (extra docs)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet -f docs/site/mkdocs.yml

token: ## a new secret for the docker cluster, readable by you only
	$(PYTHON) scripts/cluster.py token docker/token

image: ## the docker image of docker/compose.yaml
	docker build -f docker/Dockerfile -t fedsim .

soak: ## 2,000 rounds x 200 stateful clients on both backends: what grows, and how fast (about ten minutes)
	$(PYTHON) scripts/soak.py

bench: ## engine against hand-written loops, one table (a few minutes; close everything else)
	$(PYTHON) scripts/bench
