# Sourced by pretrain.sh, finetune.sh, finetune_lora.sh and finetune_method.sh: recipe and method, the processes, their signals.
# shellcheck shell=bash
# RECIPE is a name of configs/train or a path; a folder of recipes holds one per script. METHOD is a name, a file or
# a block.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"

choose_python
prepare_environment
choose_devices
module=llava_prumerge.train.run
choose_launcher "$module"
recipe="${RECIPE:-$STAGE}"
if [[ -d "$checkout/configs/train/$recipe" ]]; then
    recipe="$recipe/$STAGE"
elif [[ "$recipe" == */* && -d "$recipe" ]]; then
    recipe="$recipe/$STAGE.yaml"
fi
run=("$recipe" "method=${METHOD:?is set by the script that sources this}" "$@")
case " $* " in
    *" --dry-run "*) WORLD_SIZE="${WORLD_SIZE:-$ranks}" exec "$python" -m "$module" "${run[@]}" ;;
    *" --check "* | *" --help "* | *" -h "*) exec "$python" -m "$module" "${run[@]}" ;;
esac

# What is missing is said once and at once, not by every rank after its imports.
WORLD_SIZE="$ranks" "$python" -m "$module" "${run[@]}" --check
say_start
check_devices
if [[ -z "$how" ]]; then exec "${command[@]}" "${run[@]}"; fi

# SIGTERM reaches torchrun's ranks alone: from torchrun they would have 30 seconds, and it would call the end a failure.
# shellcheck disable=SC2317  # called by a trap
children_of() { grep -l "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3; }
# shellcheck disable=SC2317  # called by a trap
forward_term() {
    interrupted=1
    if [[ " ${command[*]} " == *" torch.distributed.run "* ]]; then
        # shellcheck disable=SC2046  # several numbers
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
