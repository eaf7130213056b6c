#!/usr/bin/env bash
# TGIF-QA, by strings; with a judge as published. [GPUS=8] bash scripts/eval/tgif_qa.sh MODEL [--data DIR] [--out DIR] [judge=URL judge_model=NAME] [key=value ...]
TASK=tgif_qa source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
