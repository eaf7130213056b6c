#!/usr/bin/env bash
# Latency and memory of LLaVA-1.5-7B and 13B on the GPU here, in 8 minutes: bash scripts/bench_gpu.sh [OUT.json]
# Needs torch, transformers and this repository, no weights and no data. Environment: MODELS, METHODS, BATCHES, PROMPTS,
# ANSWERS, DTYPES, ATTENTIONS, LIMIT (seconds of measuring), DEVICE, PYTHON; the defaults are below. KERNELS=1 counts kernels,
# gaps and host waits of the first model after that, in another minute, into OUT with `_kernels` before its suffix.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
choose_python
prepare_environment
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
out="${1:-runs/bench/gpu.json}"
device="${DEVICE:-cuda}"
if [[ "$device" == cuda* ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no CUDA device here; DEVICE=cpu MODELS=pocket DTYPES=float32 tries the script out" >&2
    exit 2
fi
status=0
# Lists are meant to fall apart into words. After 470 s the time is over: the file holds every cell measured by then.
# shellcheck disable=SC2086
timeout --signal=INT 470 "$python" -m llava_prumerge.efficiency latency --device "$device" \
    --model ${MODELS:-llava-1.5-7b llava-1.5-13b} --methods ${METHODS:-prumerge_plus=144 prumerge=40} \
    --batch ${BATCHES:-1 8 32} --prompt ${PROMPTS:-40 400} --answer ${ANSWERS:-16 64} \
    --dtype ${DTYPES:-float16 bfloat16} --attn ${ATTENTIONS:-sdpa eager} \
    --repeats "${REPEATS:-5}" --seconds "${LIMIT:-390}" --out "$out" || status=$?
if (( status == 124 )); then
    echo "8 minutes were over; what was measured by then is in $out" >&2
elif (( status )); then
    exit "$status"
fi
if [[ -n "${KERNELS:-}" ]]; then
    read -r model _ <<<"${MODELS:-llava-1.5-7b}"
    read -r dtype _ <<<"${DTYPES:-bfloat16}"
    # One adaptive method, and the two at a fixed budget, which can be compiled.
    "$python" -m llava_prumerge.profiling.kernels --device "$device" --model "$model" --dtype "$dtype" \
        --methods "{name: prumerge_plus, budget: 144}" "{name: prumerge, budget: 40}" prumerge=41 \
        --batch 1 8 --out "${out%.json}_kernels.json"
fi
