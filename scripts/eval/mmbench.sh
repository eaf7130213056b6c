#!/usr/bin/env bash
# MMBench. [GPUS=8] bash scripts/eval/mmbench.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=mmbench source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
