"""What LLaVA c121f04 and LLaVA-PruMerge 097c041 do, written out plainly: token ids, loss masks, pixels, merging, splicing, answers.

Nothing here uses the project's code; loops are left as loops. Sources of each rule are the authors' files named beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BOS, EOS, IMAGE, IGNORE = 1, 2, -200, -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
NEIGHBOURS = 32


class Encoder(Protocol):
    """From text to ids without special tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids."""


class Llama:
    """Llama's tokenizer as Vicuna sets it (`legacy: false`): what follows `</s>` gets no space in front. Sentencepiece does the rest."""

    def __init__(self, model: Path) -> None:
        import sentencepiece

        self.plain = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.mark = len(self.plain.encode("<unk>"))

    def encode(self, text: str) -> list[int]:
        """With `</s>` as the token that it is."""
        first, *others = text.split("</s>")
        found = self.plain.encode(first)
        for other in others:
            found = [*found, EOS, *(self.plain.encode(f"<unk>{other}")[self.mark :] if other else [])]
        return found


def image_token_ids(tokenizer: Encoder, text: str) -> list[int]:
    """mm_utils.tokenizer_image_token: each piece around images tokenised as a text of its own, one BOS in all."""
    first, *others = [tokenizer.encode(piece) for piece in text.split("<image>")]
    return [BOS, *first, *(number for piece in others for number in (IMAGE, *piece))]


def caption(tokenizer: Encoder, turns: Sequence[str]) -> tuple[list[int], list[int]]:
    """train.preprocess_plain: the human text is the image alone. -> ids, labels"""
    ids = image_token_ids(tokenizer, f"<image>{turns[1]}\n")
    masked = len(image_token_ids(tokenizer, "<image>"))
    return ids, [IGNORE] * masked + ids[masked:]


def vicuna(turns: Sequence[str]) -> str:
    """conversation.conv_vicuna_v1, with the image in front of the first turn as preprocess_multimodal puts it."""
    text = f"{SYSTEM} "
    for number, turn in enumerate(turns):
        if "<image>" in turn:
            turn = f"<image>\n{turn.replace('<image>', '').strip()}"
        text += f"USER: {turn} " if number % 2 == 0 else f"ASSISTANT: {turn}</s>"
    return text if len(turns) % 2 == 0 else f"{text}ASSISTANT:"


def conversation(tokenizer: Encoder, turns: Sequence[str]) -> tuple[list[int], list[int]]:
    """train.preprocess_v1 with its counts: a round's instruction is masked, less its BOS and the space before the answer.

    From the second round on both counts are one less, as `USER` behind `</s>` is one token and at a text's start two.
    Where the counts do not add up the whole sample is masked. -> ids, labels
    """
    text = vicuna(turns)
    ids = image_token_ids(tokenizer, text)
    labels, at = list(ids), 1
    labels[0] = IGNORE
    for number, part in enumerate(text.split("</s>")):
        if " ASSISTANT: " not in part:
            break
        later = int(number > 0)
        question = part.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        masked = len(image_token_ids(tokenizer, question)) - 2 - later
        labels[at : at + masked] = [IGNORE] * masked
        at += len(image_token_ids(tokenizer, part)) - later
    return ids, labels if at == len(ids) else [IGNORE] * len(ids)


def pixels(path: Path, side: int, pad: bool) -> Tensor:
    """mm_utils.expand2square and CLIP's processor: bicubic to the shorter edge, centre crop, mean and deviation. -> [3, S, S]"""
    image = Image.open(path).convert("RGB")
    if pad and image.width != image.height:
        longest = max(image.size)
        canvas = Image.new("RGB", (longest, longest), tuple(int(value * 255) for value in MEAN))
        canvas.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        image = canvas
    short, long = sorted(image.size)
    grown = int(side * long / short)
    image = image.resize((side, grown) if image.width <= image.height else (grown, side), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    values = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float64) / 255
    return torch.from_numpy(((values - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def features(tower: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """clip_encoder.forward. -> features [N, P, C] of hidden_states[-2], and the last block's class query [N, 1, C] and keys [N, 1+P, C]"""
    states = tower(images, output_hidden_states=True).hidden_states[-2]
    block = tower.encoder.layers[-1] if hasattr(tower, "encoder") else tower.vision_model.encoder.layers[-1]
    normed = block.layer_norm1(states)
    return states[:, 1:], block.self_attn.q_proj(normed)[:, :1], block.self_attn.k_proj(normed)


def prumerge(tokens: Tensor, query: Tensor, keys: Tensor, plus: bool = False) -> Tensor:
    """clip_encoder.token_prune_merge_advanced and .._plus, adaptive, of one image. [P, C], [1, C], [1+P, C] -> [kept + 1, C]

    Raises:
        ArithmeticError, ValueError: PruMerge+ on an image without outliers, or with more than a third of all patches.
    """
    count, width = tokens.shape
    attention = (query @ keys.T * width**-0.5).softmax(dim=-1)[0, 1:]
    low, high = np.percentile(attention.numpy(), [25, 75])
    number = int((attention > high + 1.5 * (high - low)).sum())
    chosen = attention.topk(number).indices.tolist()
    if plus:  # the 575 of the release is P - 1; without an outlier, or with many, it ends in an error here as well
        stride = int(int(1 / (number / count)) / 3)
        chosen += [place for place in range(0, count - 1, stride) if place not in chosen]
    normal = keys[1:] / keys[1:].norm(dim=-1, keepdim=True)
    merged = []
    for place in chosen:
        likeness = normal @ normal[place]
        likeness[place] = -torch.inf
        near = likeness.topk(min(NEIGHBOURS, count - 1)).indices
        merged.append(tokens[place] + sum(attention[other] * tokens[other] for other in near))
    left = [place for place in range(count) if place not in chosen]
    return torch.stack([*merged, sum((attention[place] * tokens[place] for place in left), torch.zeros(width))])


def spliced(embed: Any, ids: Sequence[int], image: Tensor) -> Tensor:
    """llava_arch.prepare_inputs_labels_for_multimodal, of one prompt with one image [K, D]. -> [1, L, D]"""
    at = list(ids).index(IMAGE)
    before, behind = (embed(torch.tensor(part)) for part in (ids[:at], ids[at + 1 :]))
    return torch.cat([before, image, behind])[None]


def greedy(language: Any, embeds: Tensor, steps: int) -> list[int]:
    """model.generate without sampling, the whole sequence computed anew for every token."""
    said: list[int] = []
    for _ in range(steps):
        said.append(int(language(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
        if said[-1] == EOS:
            break
        embeds = torch.cat([embeds, language.get_input_embeddings()(torch.tensor([said[-1:]]))], dim=1)
    return said
