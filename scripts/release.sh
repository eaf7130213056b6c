#!/usr/bin/env bash
# Release a model on the Hub. bash scripts/release.sh RUN_DIR NAMESPACE/NAME [--merge] [--dry-run] (docs/release.md)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
choose_python
prepare_environment
export HF_HUB_DISABLE_TELEMETRY="${HF_HUB_DISABLE_TELEMETRY:-1}"
exec "$python" -m llava_prumerge.hub "$@"
