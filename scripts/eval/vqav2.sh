#!/usr/bin/env bash
# VQAv2. [GPUS=8] bash scripts/eval/vqav2.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=vqav2 source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
