#!/usr/bin/env bash
# GQA. [GPUS=8] bash scripts/eval/gqa.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=gqa source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
