#!/usr/bin/env bash
# Stage 2, all weights. [RECIPE=13b|pocket|...] [METHOD=prumerge_plus|none|...] bash scripts/finetune.sh [key=value...]
STAGE=finetune METHOD="${METHOD:-prumerge_plus}" source "$(dirname "${BASH_SOURCE[0]}")/launch_train.sh" "$@"
