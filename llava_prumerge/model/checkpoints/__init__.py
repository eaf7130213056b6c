"""Checkpoints in and out: the layouts LLaVA is published in, converted by `python -m llava_prumerge.model.checkpoints`."""
