# What can be done here; `make help` lists it. Each target prepares the environment it needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Spinning OpenMP threads cost a factor of four as soon as anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu reproduce reproduce-methods test test-zero lint bench demo clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

setup: $(READY)  ## build .venv with the tested versions (CPU torch where the index has one)

$(READY): pyproject.toml constraints.txt
	PYTHON=$(PYTHON) bash scripts/setup.sh $(VENV)
	touch $@

setup-gpu:  ## install into the current environment beside the torch that is there, with flash-attn
	$(PYTHON) -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
	$(PYTHON) -m pip install -e '.[eval]'
	$(PYTHON) -m pip install flash-attn --no-build-isolation

reproduce: $(READY)  ## pocket world: stage 1, stage 2, six benchmarks, the four tables
	$(PY) playground/pocket/reproduce.py

reproduce-methods: $(READY)  ## pocket world: every method at four budgets against the full model, into docs/results
	$(PY) playground/pocket/reproduce_methods.py

test: $(READY)  ## all tests but the long ones
	$(PY) -m pytest -n 2

test-zero: $(READY)  ## DeepSpeed ZeRO-2 and ZeRO-3 on several processes
	$(PY) -m pytest -m zero

lint: $(READY)  ## ruff: rules and format; mypy: types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY)  ## latency, evaluation and training speed, cost of reducers and pruners, on CPU, into docs/results
	bash scripts/bench_cpu.sh

demo: MODEL ?= $(wildcard runs/pocket-lora-prumerge_plus)
demo: $(READY)  ## a page on this machine: ask a model about an image, see what a method keeps (MODEL=folder)
	@[[ -n "$(MODEL)" ]] || { echo "make demo MODEL=FOLDER: a run or a checkpoint; make reproduce trains one" >&2; exit 2; }
	$(PY) -m llava_prumerge.viz.demo $(MODEL)

clean:  ## remove generated data and runs, keep the environment
	rm -rf runs playground/pocket/data playground/pocket/work
