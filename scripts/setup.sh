#!/usr/bin/env bash
# Build the environment in the folder $1 with the tested versions; one that is half made or broken is made anew.
# Without a GPU it never installs a CUDA build of torch: where the configured index would give one, torch comes from
# PyTorch's own CPU index (TORCH_CPU_INDEX). torchvision is taken only where a build for that torch is offered: beside
# another build of it no module of transformers that trains can be imported.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
say() { printf '[setup] %s\n' "$*" >&2; }
fail() {
    echo "error: $*" >&2
    exit 2
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    command -v "$python" >/dev/null || fail "there is no $python here: install Python 3.11 or newer, or set PYTHON="
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version 2>&1) is too old: Python 3.11 or newer is needed; set PYTHON="
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make an environment with pip; on Debian and Ubuntu: apt-get install python3-venv"
    [ ! -L "$venv" ] || fail "$venv is a link to $(readlink "$venv"), where no Python with pip is; remove the link"
    [ ! -e "$venv" ] || say "$venv has no Python with pip: it is made anew"
    say "making $venv with $("$python" --version 2>&1)"
    "$python" -m venv --clear "$venv" || fail "$python -m venv --clear $venv failed, for the reason above"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
torch=$(grep -E '^torch==' constraints.txt)
torchvision=$(grep -E '^torchvision==' constraints.txt)

# What the index would give for $1: its version, then what it requires, a line each; further arguments go to pip.
offered() {
    "${pip[@]}" install -q --dry-run --no-deps --ignore-installed --report - "$@" 2>/dev/null | "$venv/bin/python" -c '
import json, sys
found = json.load(sys.stdin)["install"][0]["metadata"]
print(found["version"], *(item for item in found.get("requires_dist", []) if "extra ==" not in item), sep="\n")'
}
installed() {
    "$venv/bin/python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null
}
build_of() { case $1 in *+*) echo "${1#*+}" ;; *) echo published ;; esac; }  # 2.13.0+cpu: cpu

index=()
if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && ! installed torch >/dev/null &&
    offered "$torch" | grep -qE '^(nvidia-|cuda-)'; then
    index=(--index-url "$cpu_index" --retries 1 --timeout 20)
fi
if ! installed torch >/dev/null; then
    say "installing $torch${index[1]:+ from ${index[1]}}"
    "${pip[@]}" install -q --no-deps "${index[@]}" "$torch" || {
        fail "no GPU here, and no CPU build of $torch${index[1]:+ at ${index[1]}}; set TORCH_CPU_INDEX to where one is"
    }
fi

extras=dev
vision=$(offered "${index[@]}" "$torchvision" | head -n 1 || true)
if [ -n "$vision" ] && [ "$(build_of "$vision")" = "$(build_of "$(installed torch)")" ]; then
    "${pip[@]}" install -q --no-deps "${index[@]}" "$torchvision"
    extras=dev,open_clip
else
    say "no torchvision for torch $(installed torch) is offered: the extra open_clip is left out; nothing else needs it"
fi
say "installing the package and what it needs; this takes a few minutes and about 2 GB"
"${pip[@]}" install --progress-bar off -c constraints.txt -e ".[$extras]" | sed -u -E '/^(Requirement already|  )/d' ||
    fail "pip could not install everything, for the reason above; the same command goes on"

if installed torchvision >/dev/null && ! "$venv/bin/python" -c 'import torchvision' >/dev/null 2>&1; then
    say "removing torchvision $(installed torchvision): built for another torch, it would break transformers"
    "${pip[@]}" uninstall -q -y torchvision open_clip_torch timm
fi
say "ready: $("$venv/bin/python" --version), torch $(installed torch), in $venv"
