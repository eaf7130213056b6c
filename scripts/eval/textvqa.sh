#!/usr/bin/env bash
# TextVQA. [GPUS=8] bash scripts/eval/textvqa.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=textvqa source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
