"""SmolLM2-135M-Instruct out of a GGUF file: transformers reads it, and a plain Llama with safetensors is written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from llava_prumerge.ground.errors import InputError
from llava_prumerge.model.strict_loading import in_one_line

FILE = "model.gguf"


def save(content: bytes, folder: Path) -> None:
    """A folder that transformers reads: weights, configuration, tokenizer with its chat template.

    A model read from GGUF counts as quantised and refuses to be saved, so that its weights move into a plain one.

    Raises:
        InputError: the gguf package is missing, or the file does not make the model.
    """
    try:
        import gguf  # noqa: F401  transformers asks for it
    except ModuleNotFoundError as error:
        needs = "reading the language model needs the package gguf: pip install 'llava-prumerge[small]'"
        raise InputError(needs) from error
    with tempfile.TemporaryDirectory(dir=folder.parent) as place, in_one_line(folder):
        (Path(place) / FILE).write_bytes(content)
        read = LlamaForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=FILE)
    config = read.config.__class__.from_dict(
        {key: value for key, value in read.config.to_dict().items() if key not in ("quantization_config", "dtype")}
    )
    model = LlamaForCausalLM(config)
    told = model.load_state_dict(read.state_dict(), strict=False)
    if told.unexpected_keys or set(told.missing_keys) - {"lm_head.weight"}:
        raise InputError(f"the file does not make a SmolLM2-135M: {told}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
