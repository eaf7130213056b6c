#!/usr/bin/env bash
# Several benchmarks, or all. [TASK=pope,mme] [GPUS=8] bash scripts/eval/tasks.sh MODEL [--out DIR] [key=value ...]
TASK="${TASK:-all}" source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
