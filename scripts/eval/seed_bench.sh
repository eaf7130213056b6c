#!/usr/bin/env bash
# SEED-Bench, image questions. [GPUS=8] bash scripts/eval/seed_bench.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=seed_bench source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
