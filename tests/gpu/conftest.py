"""What all tests on a GPU need: a device, and float32 that is float32."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def plain_arithmetic() -> None:
    if os.environ.get("GPU_TESTS_ON", "cuda") == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
