#!/usr/bin/env bash
# MM-Vet. [GPUS=8] bash scripts/eval/mmvet.sh MODEL [--data DIR] [--out DIR] [judge=URL judge_model=NAME] [key=value ...]
TASK=mmvet source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
