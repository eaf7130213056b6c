#!/usr/bin/env bash
# ScienceQA. [GPUS=8] bash scripts/eval/sqa.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=sqa source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
