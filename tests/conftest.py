"""What every test shares: quiet threads, no network, and a tiny LLaVA."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other as soon as two processes run
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import llava_prumerge  # noqa: E402, F401  (before transformers: it makes torchvision importable beside a CPU torch)
