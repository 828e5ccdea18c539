# The commands of the project; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
DEMO   := data/embedded

.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast test-slow lint format docs bench clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

env: $(STAMP)  ## make .venv with the pinned packages (demo and test do it by themselves)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=python3.12 env")'
	$(PYTHON) -m venv $(VENV) || { echo 'python -m venv failed: on Debian, apt-get install python3-venv'; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[preprocess,train,browse,dev,docs]'
	@touch $(STAMP)

demo: env  ## build verified shards of the embedded dataset, train a small HierVL on them, ask it questions
	$(PY) preprocessing/build_shards.py
	$(PY) -m shards.verify $(DEMO)/shards
	$(PY) -m shards.inspect $(DEMO)/shards
	$(PY) -m shards.inspect $(DEMO)/shards --html $(DEMO)/index.html
	$(PY) hiervl_train/pretrain.py run.folder=$(DEMO)/run
	$(PY) eval/all.py --config configs/eval/embedded.yaml --checkpoint $(DEMO)/run --shards $(DEMO)/shards
	@echo "look at them: $(DEMO)/index.html (the shards), $(DEMO)/run/index.html (the training),"
	@echo "              $(DEMO)/run/evaluation/index.html (the scores)"
	@echo "              or browse the shards: $(PY) -m shards.browse $(DEMO)/shards"

test: env  ## the whole test suite
	$(PY) -m pytest -n 2 --dist worksteal -m 'not slow'

test-fast: env  ## the tests for the inner loop: no builds, no training runs (under 2 minutes)
	$(PY) -m pytest -n 2 --dist worksteal -m 'not slow and not medium'

test-slow: env  ## the tests that take minutes
	$(PY) -m pytest -n 2 --dist worksteal -m slow

lint: env  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: env  ## rewrite the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: env  ## build the documentation site into build/docs and check every link
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	$(PY) tools/check_docs.py --site build/docs
	@echo "open build/docs/index.html"

bench: env  ## every benchmark, one after another; results under benchmarks/results
	$(PY) benchmarks/run_all.py

clean:  ## remove what the demo made (the environment stays)
	rm -rf data/embedded
