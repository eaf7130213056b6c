#!/usr/bin/env bash
# An environment that sees another one's packages and adds Gradio and Playwright: bash scripts/demo_env.sh PYTHON FOLDER
# Gradio wants a Pillow below 13, which is not the tested one; a Chromium has to be there, Playwright's or the system's.
set -euo pipefail
python=$1 folder=$2
GRADIO=6.31.0 PILLOW=12.3.0 PLAYWRIGHT=1.65.2
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }
"$folder/bin/python" -m pip install -q --no-deps "pillow==$PILLOW"
packages "$python" > "$(packages "$folder/bin/python")/beside.pth"
"$folder/bin/python" -m pip install -q -c <(grep -v '^pillow==' constraints.txt) "gradio==$GRADIO" "playwright==$PLAYWRIGHT"
