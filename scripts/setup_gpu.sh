#!/usr/bin/env bash
# Install into the active environment, beside the torch that is there: [FLASH=1] bash scripts/setup_gpu.sh (make setup-gpu)
# The tested versions of everything else are kept. FLASH=1 adds flash-attn, which no recipe asks for: it is built with
# nvcc where no finished build fits. PYTHON=... names another Python than the active environment's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
say() { echo "setup-gpu: $*" >&2; }

choose_python
say "into the environment of $python ($chosen)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is too old: Python 3.11 or newer is needed"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; it gets it by: $python -m ensurepip"
# A distribution marks its own Python so (PEP 668), and pip then refuses it in ten lines.
managed='import os, sys, sysconfig
marked = os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
sys.exit(marked and sys.prefix == sys.base_prefix)'
if [[ -z "${PIP_BREAK_SYSTEM_PACKAGES:-}" ]]; then
    "$python" -c "$managed" || fail "$python belongs to the system, which forbids pip to change it (PEP 668):" \
        "python3 -m venv ENV && source ENV/bin/activate, or activate a conda environment, then run this again"
fi

installed() { "$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null; }
constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
cp "$checkout/constraints.txt" "$constraints"
for name in torch torchvision; do  # what fits the driver here was chosen by whoever installed it
    version="$(installed "$name")" || continue
    grep -v "^$name==" "$constraints" >"$constraints.new" || true
    echo "$name==$version" >>"$constraints.new"
    mv "$constraints.new" "$constraints"
    say "$name $version stays"
done
if installed torch >/dev/null; then
    cuda="$("$python" -c 'import torch; print(torch.version.cuda or torch.version.hip)' 2>/dev/null)" || cuda=""
    [[ "$cuda" != None ]] || fail "torch $(installed torch) in this environment is a build without CUDA: install one with" \
        "it first (https://pytorch.org/get-started/locally), or activate the environment that has one"
    say "built for CUDA ${cuda:-of unknown version}"
else
    say "no torch is here: the package index gives one"
fi

say "installing the package and what it needs; a few minutes, and some GB where torch is among it"
"$python" -m pip --disable-pip-version-check install --progress-bar off -c "$constraints" -e "${checkout}[eval]"
if [[ "${FLASH:-0}" != 0 ]]; then
    say "installing flash-attn; an hour where it has to be built"
    "$python" -m pip --disable-pip-version-check install --no-build-isolation -c "$constraints" flash-attn ||
        fail "flash-attn cannot be installed here (it needs nvcc of torch's CUDA version, and ninja); everything else is" \
            "installed and works without it"
fi
"$python" -m llava_prumerge.model.devices
say "ready"
