"""Release to the Hub: `bash scripts/release.sh RUN_DIR NAMESPACE/NAME`, or `python -m llava_prumerge.hub`."""
