#!/usr/bin/env bash
# VizWiz. [GPUS=8] bash scripts/eval/vizwiz.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=vizwiz source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
