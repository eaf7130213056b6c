#!/usr/bin/env bash
# Remove all runs: lists them with their sizes and asks first. [CONFIRM=yes] bash scripts/clean_runs.sh (make clean-runs)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -L runs ]]; then
    echo "error: runs is a link to $(readlink runs); remove what is there by hand" >&2
    exit 2
fi
if [[ ! -d runs || -z "$(ls -A runs)" ]]; then
    echo "runs/ holds nothing"
    exit 0
fi
echo "runs/ holds trained models, results and logs:"
find runs -mindepth 1 -maxdepth 1 -exec du -sh {} + | sort -rh
answer="${CONFIRM:-}"
if [[ -z "$answer" ]]; then
    printf 'Remove all of it? There is no way back. Type yes: '
    read -r answer || true
fi
if [[ "$answer" != yes ]]; then
    echo "nothing was removed" >&2
    exit 1
fi
find runs -mindepth 1 -maxdepth 1 -exec rm -rf {} +
echo "removed"
