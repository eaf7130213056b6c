#!/usr/bin/env bash
# Stage 2, LoRA. [RECIPE=13b|pocket|...] [METHOD=prumerge_plus|none|...] bash scripts/finetune_lora.sh [key=value...]
STAGE=finetune_lora METHOD="${METHOD:-prumerge_plus}" source "$(dirname "${BASH_SOURCE[0]}")/launch_train.sh" "$@"
