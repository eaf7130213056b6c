#!/usr/bin/env bash
# Stage 1: the projector. [RECIPE=13b|pocket|...] [METHOD=none|prumerge|...] bash scripts/pretrain.sh [key=value...]
STAGE=pretrain METHOD="${METHOD:-none}" source "$(dirname "${BASH_SOURCE[0]}")/launch_train.sh" "$@"
