#!/usr/bin/env bash
# Release a model on the Hub. bash scripts/release.sh RUN_DIR NAMESPACE/NAME [--merge] [--dry-run] [options, see docs/release.md]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[[ -x .venv/bin/python ]] && python=.venv/bin/python
export HF_HUB_DISABLE_TELEMETRY="${HF_HUB_DISABLE_TELEMETRY:-1}"
exec "$python" -m llava_prumerge.hub "$@"
