# Sourced by pretrain.sh, finetune.sh and finetune_lora.sh: one process where there is no GPU, torchrun otherwise.
# Environment: GPUS (processes on this host), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[[ -x .venv/bin/python ]] && python=.venv/bin/python
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# glibc gives every large tensor back to the system and asks for it again: a third of a step on CPU.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

recipe="${RECIPE:-$STAGE}"
if [[ -d "configs/train/$recipe" ]]; then recipe="$recipe/$STAGE"; fi
if [[ -z "${GPUS:-}" ]]; then
    GPUS=0
    if command -v nvidia-smi >/dev/null; then GPUS="$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)"; fi
fi

launcher=("$python")
if (( GPUS > 1 || ${NNODES:-1} > 1 )); then
    launcher+=(-m torch.distributed.run --nproc_per_node "$GPUS" --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
fi
run=(-m llava_prumerge.train.run "configs/train/$recipe.yaml" "configs/method/$METHOD.yaml" "$@")

# What is missing is said once and at once, not by every rank after its imports.
if (( ${#launcher[@]} > 1 )); then "$python" "${run[@]}" --check; fi
exec "${launcher[@]}" "${run[@]}"
