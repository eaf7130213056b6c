#!/usr/bin/env bash
# One task of a Slurm job: says in torch's variables which rank and which GPU it is, then becomes the command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launching.sh"
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
list_gpus
find_visible
# Where Slurm binds a GPU to each task (--gpus-per-task, --gpu-bind), each sees its own alone, as number 0.
if (( ${#visible[@]} == 1 )); then LOCAL_RANK=0; fi
exec "$@"
