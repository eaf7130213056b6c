#!/usr/bin/env bash
# A method's own weights. [RECIPE=pocket|...] [METHOD=meta_compress|...] bash scripts/finetune_method.sh [key=value...]
STAGE=finetune_method METHOD="${METHOD:-meta_compress}" source "$(dirname "${BASH_SOURCE[0]}")/launch_train.sh" "$@"
