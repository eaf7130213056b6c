"""CLIP's text side, which a LLaVA checkpoint leaves out: words and patch features in CLIP's joint space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava_prumerge.model.errors import ModelError
from llava_prumerge.text.tokenizers import load_tokenizer


class TextSide:
    """The text tower and both projections of a CLIP model; it is lent to a model and never saved with it.

    Attributes:
        path: folder or name on the Hub.
    """

    def __init__(self, path: str) -> None:
        """Load it, in float32 on the CPU.

        Raises:
            LoadingError: no CLIP model is there, or its weights do not fit.
        """
        from transformers import AutoTokenizer, CLIPModel

        from llava_prumerge.model.strict_loading import in_one_line, load_strictly, read_config

        kind = read_config(path).model_type
        if kind != "clip":
            raise ModelError(f"clip: {path} is a {kind!r} model; a whole CLIP model, with its text side, is asked for")
        whole = load_strictly(CLIPModel, path, use_safetensors=True).eval().requires_grad_(False)
        with in_one_line(path):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.path, self.width = path, whole.config.vision_config.hidden_size
        self.longest = whole.config.text_config.max_position_embeddings
        self.text, self.text_projection = whole.text_model, whole.text_projection
        self.norm, self.visual_projection = whole.vision_model.post_layernorm, whole.visual_projection

    def _on(self, device: torch.device) -> None:
        for part in (self.text, self.text_projection, self.norm, self.visual_projection):
            part.to(device)

    @torch.no_grad()
    def patches(self, features: Tensor) -> Tensor:
        """Patch features as CLIP projects its class token, not normalised. [N, P, C] -> [N, P, E] float32

        Raises:
            ModelError: they are not this model's.
        """
        if features.shape[2] != self.width:
            raise ModelError(
                f"clip: {self.path} has a tower of width {self.width}, the features have {features.shape[2]}: name the "
                "CLIP model that this model's tower is of, or take space llm"
            )
        self._on(features.device)
        return self.visual_projection(self.norm(features.float()))

    @torch.no_grad()
    def texts(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Texts, each cut into segments that CLIP's text tower can read; each has a beginning and an end of its own.

        Returns:
            [B, S, E] float32, not normalised, and which segments there are, [B, S] bool.
        """
        self._on(device)
        found = self.tokenizer(
            list(texts),
            max_length=self.longest,
            truncation=True,
            return_overflowing_tokens=True,
            padding=True,
            return_tensors="pt",
        )
        owner = found["overflow_to_sample_mapping"].to(device)  # rising
        ids, mask = found["input_ids"].to(device), found["attention_mask"].to(device)
        pooled = self.text_projection(self.text(input_ids=ids, attention_mask=mask).pooler_output)  # [M, E]
        counts = torch.bincount(owner, minlength=len(texts))
        place = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
        embeddings = pooled.new_zeros(len(texts), int(counts.max()), pooled.shape[1])
        embeddings[owner, place] = pooled
        return embeddings, torch.arange(embeddings.shape[1], device=device) < counts[:, None]


def words_of(config: Any) -> Any:
    """The tokenizer of the folder or the Hub's repository that a model was loaded from.

    Raises:
        ModelError: nothing says where that is.
        TokenizerError: there is none.
    """
    source = getattr(config, "name_or_path", "")
    if not source:
        raise ModelError(
            "space clip reads the question's words, and nothing says which tokenizer: attach(model, ..., tokenizer=processor)"
        )
    return load_tokenizer(source)
