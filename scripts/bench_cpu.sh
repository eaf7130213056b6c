#!/usr/bin/env bash
# The CPU matrix behind docs/results/efficiency_cpu.*: bash scripts/bench_cpu.sh [OUT_PREFIX], 15 minutes on two cores.
# Each step leaves a file in the checkout's runs/bench/<revision>; a second run does what is not there yet. Environment:
# QUICK=1 (a trial in two minutes, whose numbers mean nothing), PYTHON.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
choose_python
prepare_environment
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

prefix="${1:-$checkout/docs/results/efficiency_cpu}"
[[ "$prefix" == /* ]] || prefix="$PWD/$prefix"
cd "$checkout"  # whose revision, pocket world and recipes are measured
revision="$(git describe --always --dirty 2>/dev/null || echo unknown)"
folder="runs/bench/$revision${QUICK:+-quick}"
mkdir -p "$folder"
pocket=playground/pocket

failed=()
# NAME COMMAND... gets --out FILE. A file that is there is a step that is done; one that fails leaves the others alone.
step() {
    local name="$1" began=$SECONDS
    shift
    if [[ -s "$folder/$name.json" ]]; then echo "$name: done before"; return; fi
    if ! "$@" --out "$folder/$name.partial.json" >"$folder/$name.log" 2>&1; then
        tail -n 20 "$folder/$name.log" >&2
        echo "$name: failed, see $folder/$name.log" >&2
        failed+=("$name")
        return
    fi
    mv "$folder/$name.partial.json" "$folder/$name.json"
    echo "$name: $((SECONDS - began)) s"
}

parts=(-m llava_prumerge.efficiency latency --device cpu --dtype float32)
backbones=(--language-model "$pocket/backbones/lm" --vision-tower "$pocket/backbones/clip")
recipes=(configs/train/pocket/finetune.yaml configs/train/pocket/finetune_lora.yaml)
# As in playground/pocket/reproduce.py: where a fifth of the patches are outliers, PruMerge+'s own stride keeps most.
plus="$folder/prumerge_plus_72.yaml"
echo 'vision: {name: prumerge_plus, budget: 72, share: 0.4}' >"$plus"

if [[ -n "${QUICK:-}" ]]; then
    rounds=1 questions=32 batches="1" repeats=1 answer=2 steps=2 padding=4 layers=1
else
    rounds=3 questions=256 batches="1 8" repeats=4 answer=8 steps=4 padding=40 layers=2
fi

"$python" $pocket/build.py data >"$folder/data.log" 2>&1
# shellcheck disable=SC2086
step pocket "$python" "${parts[@]}" --model pocket --methods prumerge_plus=36 prumerge=10 --batch $batches --answer $answer --repeats $((2 * repeats))
step llava "$python" "${parts[@]}" --methods prumerge_plus=144 prumerge=40 --layers $layers --blocks $layers --answer $answer --repeats $repeats
# shellcheck disable=SC2086
step reducer "$python" -m llava_prumerge.profiling.reducer --batch $batches --repeats $((repeats > 3 ? 3 : 1)) \
    --methods prumerge prumerge_plus "{name: prumerge_plus, budget: 144}" grid pool
step throughput "$python" -m eval.throughput --task vqav2 --data $pocket/data/eval "${backbones[@]}" \
    --methods "$plus" prumerge_plus prumerge --rounds $rounds limit=$questions batch_size=64
step training "$python" -m llava_prumerge.train.speed "${recipes[@]}" --methods prumerge "$plus" prumerge_plus \
    --random-projector length_pool=8 --steps $steps --rounds $rounds --padding-batches $padding
step pruner "$python" -m llava_prumerge.profiling.pruner --repeats $((repeats > 2 ? 3 : 1))
"$python" -m llava_prumerge.efficiency collect "$folder" --out "$prefix"
if (( ${#failed[@]} )); then
    echo "failed: ${failed[*]}; run this again to repeat them alone" >&2
    exit 1
fi
