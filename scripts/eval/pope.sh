#!/usr/bin/env bash
# POPE. [GPUS=8] bash scripts/eval/pope.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=pope source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
