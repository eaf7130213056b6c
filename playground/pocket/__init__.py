"""The pocket world: generated scenes, and everything a small LLaVA needs to be trained and evaluated on them."""

import llava_prumerge  # noqa: F401  before transformers, so that torchvision is importable beside a CPU build of torch
