#!/usr/bin/env bash
# MME. [GPUS=8] bash scripts/eval/mme.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=mme source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
