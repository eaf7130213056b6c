#!/usr/bin/env bash
# MMBench-CN. [GPUS=8] bash scripts/eval/mmbench_cn.sh MODEL [--data DIR] [--out DIR] [key=value ...]
TASK=mmbench_cn source "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
