#!/usr/bin/env bash
# An environment that sees another one's packages and adds TRL and bitsandbytes: bash scripts/trl_env.sh PYTHON FOLDER
# They are not among the tested versions: nothing of the project needs them, a test shows that they work with it.
set -euo pipefail
python=$1 folder=$2
TRL=1.16.0 BITSANDBYTES=0.50.2
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }
packages "$python" > "$(packages "$folder/bin/python")/beside.pth"
"$folder/bin/python" -m pip install -q --no-deps "trl==$TRL" "bitsandbytes==$BITSANDBYTES"
