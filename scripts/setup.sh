#!/usr/bin/env bash
# Build the environment in the folder $1 with the tested versions. Without a GPU it never installs a CUDA build of torch:
# where the configured index would give one, torch comes from PyTorch's own CPU index (TORCH_CPU_INDEX). torchvision is taken
# only where a build for that torch is offered: beside another build of it no module of transformers that trains can be imported.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
say() { printf '[setup] %s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || {
        say "$python cannot make an environment with pip; on Debian and Ubuntu: apt-get install python3-venv"
        exit 1
    }
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
torch=$(grep -E '^torch==' constraints.txt)
torchvision=$(grep -E '^torchvision==' constraints.txt)

offered() {  # what the index would give for $1: its version, then what it requires, a line each; further arguments go to pip
    "${pip[@]}" install -q --dry-run --no-deps --ignore-installed --report - "$@" 2>/dev/null | "$venv/bin/python" -c '
import json, sys
found = json.load(sys.stdin)["install"][0]["metadata"]
print(found["version"], *(item for item in found.get("requires_dist", []) if "extra ==" not in item), sep="\n")'
}
installed() { "$venv/bin/python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null; }
build_of() { case $1 in *+*) echo "${1#*+}" ;; *) echo published ;; esac; }  # 2.13.0+cpu: cpu

index=()
if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && ! installed torch >/dev/null &&
    offered "$torch" | grep -qE '^(nvidia-|cuda-)'; then
    index=(--index-url "$cpu_index" --retries 1 --timeout 20)
fi
if ! installed torch >/dev/null; then
    say "installing $torch${index[1]:+ from ${index[1]}}"
    "${pip[@]}" install -q --no-deps "${index[@]}" "$torch" || {
        say "no GPU here and no CPU build of $torch${index[1]:+ at ${index[1]}}; set TORCH_CPU_INDEX to an index that has one"
        exit 1
    }
fi

extras=dev
vision=$(offered "${index[@]}" "$torchvision" | head -n 1 || true)
if [ -n "$vision" ] && [ "$(build_of "$vision")" = "$(build_of "$(installed torch)")" ]; then
    "${pip[@]}" install -q --no-deps "${index[@]}" "$torchvision"
    extras=dev,open_clip
else
    say "no torchvision for torch $(installed torch) is offered: leaving out the extra open_clip, which nothing else needs"
fi
say "installing the package and what it needs; this takes a few minutes and about 2 GB"
"${pip[@]}" install --progress-bar off -c constraints.txt -e ".[$extras]" | grep -vE '^(Requirement already|  )' || true
test "${PIPESTATUS[0]}" = 0

if installed torchvision >/dev/null && ! "$venv/bin/python" -c 'import torchvision' >/dev/null 2>&1; then
    say "removing torchvision $(installed torchvision): it was built for another torch, and transformers would break on it"
    "${pip[@]}" uninstall -q -y torchvision open_clip_torch timm
fi
say "ready: $("$venv/bin/python" --version), torch $(installed torch), in $venv"
