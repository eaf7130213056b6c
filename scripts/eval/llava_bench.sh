#!/usr/bin/env bash
# LLaVA-Bench (in the wild). [GPUS=8] bash scripts/eval/llava_bench.sh MODEL [--data DIR] [--out DIR] [judge=URL judge_model=NAME] [key=value ...]
TASK=llava_bench source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
