#!/usr/bin/env bash
# MSVD-QA, by strings; with a judge as published. [GPUS=8] bash scripts/eval/msvd_qa.sh MODEL [--data DIR] [--out DIR] [judge=URL judge_model=NAME] [key=value ...]
TASK=msvd_qa source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
