"""What every test shares: quiet threads, no network, and a tiny LLaVA."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other as soon as two processes run
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib  # noqa: E402

with contextlib.suppress(ModuleNotFoundError):  # a copy of the tree need not hold the pocket world
    from playground.pocket.torchvision_mend import declare_operators

    declare_operators()  # where it is there and not torch's own, so that what compares with open_clip can run
