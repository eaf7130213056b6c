#!/usr/bin/env bash
# Build the environment in the folder $1 with the tested versions. Without a GPU it never installs a CUDA build of torch:
# where the configured index would give one, torch comes from PyTorch's own CPU index (TORCH_CPU_INDEX).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

"$python" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check -q)
torch=$(grep -E '^torch==' constraints.txt)

pulls_cuda() {  # whether installing $torch from the configured index brings CUDA libraries
    "${pip[@]}" install --dry-run --no-deps --ignore-installed --report - "$torch" 2>/dev/null |
        "$venv/bin/python" -c '
import json, sys
wanted = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])
sys.exit(not any(item.startswith(("nvidia-", "cuda-")) and "extra ==" not in item for item in wanted))'
}

if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 &&
    ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null && pulls_cuda; then
    "${pip[@]}" install --no-deps --retries 1 --timeout 20 --index-url "$cpu_index" "$torch" || {
        echo "no GPU here and no CPU build of $torch at $cpu_index; set TORCH_CPU_INDEX to an index that has one" >&2
        exit 1
    }
fi
"${pip[@]}" install -c constraints.txt -e '.[dev]'
