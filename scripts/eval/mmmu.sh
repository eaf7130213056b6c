#!/usr/bin/env bash
# MMMU, validation. [GPUS=8] bash scripts/eval/mmmu.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=mmmu source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
