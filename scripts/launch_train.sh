# Sourced by pretrain.sh, finetune.sh and finetune_lora.sh: one process where there is no GPU, torchrun otherwise.
# Environment: GPUS (processes on this host), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
# HOSTFILE=FILE starts the deepspeed launcher on its hosts instead, LAUNCHER=srun a Slurm allocation's tasks, one per GPU.
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

module=llava_prumerge.train.run
run=("configs/train/$recipe.yaml" "configs/method/$METHOD.yaml" "$@")
case " $* " in
    *" --dry-run "*) WORLD_SIZE="${WORLD_SIZE:-$(((GPUS > 1 ? GPUS : 1) * ${NNODES:-1}))}" exec "$python" -m "$module" "${run[@]}" ;;
    *" --check "* | *" --help "*) exec "$python" -m "$module" "${run[@]}" ;;
esac

rendezvous=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
if [[ -n "${HOSTFILE:-}" ]]; then
    [[ -f "$HOSTFILE" ]] || { echo "error: HOSTFILE=$HOSTFILE: there is no such file" >&2; exit 2; }
    [[ -n "${MASTER_ADDR:-}" ]] || rendezvous=(--master_port "${MASTER_PORT:-29500}")  # deepspeed asks the first host
    command=("$python" -m deepspeed.launcher.runner --hostfile "$HOSTFILE" "${rendezvous[@]}" --no_local_rank --module "$module")
elif [[ "${LAUNCHER:-}" == srun ]]; then
    : "${MASTER_ADDR:?LAUNCHER=srun needs it: the first host of the allocation, see scripts/slurm}"
    export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"
    # shellcheck disable=SC2016  (each task reads its own variables)
    task='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"'
    command=(srun --kill-on-bad-exit=1 bash -c "$task" task "$python" -m "$module")
elif (( GPUS > 1 || ${NNODES:-1} > 1 )); then
    command=("$python" -m torch.distributed.run --nproc_per_node "$GPUS" --nnodes "${NNODES:-1}"
        --node_rank "${NODE_RANK:-0}" "${rendezvous[@]}" -m "$module")
else
    exec "$python" -m "$module" "${run[@]}"
fi

# What is missing is said once and at once, not by every rank after its imports.
"$python" -m "$module" "${run[@]}" --check

# SIGTERM reaches torchrun's ranks alone: from torchrun they would have 30 seconds, and it would call the end a failure.
children_of() { grep -l "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3; }
forward_term() {
    interrupted=1
    if [[ " ${command[*]} " == *" torch.distributed.run "* ]]; then
        kill -TERM $(children_of "$job") 2>/dev/null || true
    else
        kill -TERM "$job" 2>/dev/null || true
    fi
}
set -m  # a process group of its own, so that Ctrl-C is passed on once and to all of it
"${command[@]}" "${run[@]}" </dev/null &
job=$!
trap forward_term TERM
trap 'interrupted=1; kill -INT -- "-$job" 2>/dev/null || true' INT
status=0
while :; do  # a trap interrupts the waiting
    interrupted=0 code=0
    wait "$job" || code=$?
    (( code == 127 )) || status=$code
    (( interrupted )) || break
done
exit "$status"
