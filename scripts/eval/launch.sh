# Sourced by the scripts of this folder: one process for each GPU that CUDA shows, one on the CPU where it shows none.
# shellcheck shell=bash
# Everything on the command line behind the model is --option or key=value, see docs/evaluation.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launching.sh"

if (( $# == 0 )); then
    fail "a model is missing: [GPUS=8] bash scripts/eval/${0##*/} MODEL [--data DIR] [--out DIR] [key=value ...]"
fi
choose_python
prepare_environment
choose_devices
module=llava_prumerge.evaluation.run
choose_launcher "$module"
run=(run --task "$TASK" --model "$@")
# What is missing is said once and at once, not by every process after its imports.
"$python" -m "$module" "${run[@]}" --check
say_start
check_devices
exec "${command[@]}" "${run[@]}"
