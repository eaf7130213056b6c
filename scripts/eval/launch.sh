# Sourced by the scripts of this folder: one process where there is at most one GPU, torchrun otherwise.
# Environment: GPUS (processes on this host). Everything else is --option or key=value, see docs/evaluation.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=python
[[ -x .venv/bin/python ]] && python=.venv/bin/python
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# glibc gives every large tensor back to the system and asks for it again: a third of a step on CPU.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

if (( $# == 0 )); then
    echo "usage: [GPUS=8] bash scripts/eval/$TASK.sh MODEL [--data DIR] [--out DIR] [key=value ...]" >&2
    exit 2
fi
if [[ -z "${GPUS:-}" ]]; then
    GPUS=0
    if command -v nvidia-smi >/dev/null; then GPUS="$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)"; fi
fi
launcher=("$python")
if (( GPUS > 1 )); then launcher+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS"); fi
exec "${launcher[@]}" -m eval.run run --task "$TASK" --model "$@"
