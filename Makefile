# The commands of the README. Everything runs in .venv, which requirements/setup.sh rebuilds when what it was built from changes: the
# locks, pyproject.toml, setup.py, the Python version or TORCH_INDEX.

PYTHON ?= python3
# Where pip finds a CPU build of torch, if not on its usual indexes (PyTorch's installation page gives the address).
TORCH_INDEX ?=
PORT ?= 5000
# Which images: names of stages, by default all; and how (python3 requirements/images.py --help).
STAGES ?=
IMAGES ?=

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup run test slow lint ui images clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: ## build .venv from requirements/laptop.lock, unless it is up to date
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' bash requirements/setup.sh

run: setup ## all seven stages, end to end
	@kfp run pipelines/full.py

test: setup ## the tests, without those marked slow
	@pytest -q --numprocesses 2 -m 'not slow' tests

slow: setup ## the tests marked slow
	@pytest -q --numprocesses 2 -m slow tests

lint: setup ## ruff
	@ruff check .

ui: setup ## the report, a chat with the served model and MLflow, on PORT (5000)
	@stagecraft ui --port $(PORT)

images: ## the container images of STAGES (all), with podman or docker
	@TORCH_INDEX='$(TORCH_INDEX)' $(PYTHON) requirements/images.py $(IMAGES) $(STAGES)

clean: ## remove work in progress and caches of tools; artifacts, DVC's cache and MLflow's record stay
	@rm -rf .work .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
