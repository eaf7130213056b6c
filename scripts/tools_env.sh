#!/usr/bin/env bash
# An environment with a tool for the tests of docs/lmms_eval.md, vlmevalkit.md and serving.md: bash scripts/tools_env.sh PYTHON FOLDER TOOL
# lmms-eval and serve see the packages of PYTHON's environment, and add what the tool itself needs. VLMEvalKit needs torchvision, whose
# build decides which torch there is: it gets a whole environment, by the line of its page (7 GB).
set -euo pipefail
python=$1 folder=$2 tool=$3 root=$(cd "$(dirname "$0")/.." && pwd)
case $tool in
    lmms-eval) packages=(lmms-eval==0.7.3 DataProperty==1.1.1 aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 chardet==7.7.0
        evaluate==0.4.6 frozenlist==1.8.0 loguru==0.7.3 lxml==6.1.3 mbstrdecoder==1.1.5 multidict==7.2.1 pathvalidate==3.3.1
        portalocker==4.4.2 propcache==0.5.4 pytablewriter==1.2.1 pytz==2026.6 sacrebleu==2.6.0 tabledata==1.3.5 tabulate==0.10.0
        tcolorpy==0.1.7 tenacity==9.2.1 typepy==2.0.0 yarl==1.25.1) ;;
    vlmevalkit) packages=() ;;
    serve) packages=(openai==3.57.0 fastapi==0.165.0 starlette==1.10.0 uvicorn==0.54.0 jiter==0.19.0 distro==1.9.0 sniffio==1.3.1) ;;
    *) echo "error: tool $tool is not known; there are lmms-eval, vlmevalkit, serve" >&2; exit 2 ;;
esac
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
if [ "$tool" = vlmevalkit ]; then
    "$folder/bin/python" -m pip install -q -e "${root}[vlmevalkit]" "ms-vlmeval==0.0.20" "pytest>=8"
    exit
fi
packages_of() { "$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }
packages_of "$python" > "$(packages_of "$folder/bin/python")/beside.pth"
"$folder/bin/python" -m pip install -q --no-deps "${packages[@]}"
"$folder/bin/python" -m pip install -q --no-deps -e "$root"  # for its entry points
