"""Records whose turns are asked each by itself behind the image they share, as one sequence: what `packing=turns` trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch

from llava_prumerge.data.conversation import IGNORE_INDEX, Places, encode_training
from llava_prumerge.data.dataset import LlavaDataset
from llava_prumerge.text.templates import IMAGE_MARKER


class PackedDataset(LlavaDataset):
    """Items as `LlavaDataset`'s, and `turn_of` [L]: the turn each token belongs to, from 1, or 0 for what turns share.

    A record of several turns becomes what its turns are as records of one turn each, with what these begin with in common written
    once. Turns that would go beyond `max_length` are left out. A record of one turn, or whose images do not all stand in its first
    question, is one conversation as ever.
    """

    def _encoded(self, record: dict[str, Any], places: Places) -> dict[str, Any]:
        item = None
        if len(turns := single_turns(record)) > 1:
            encoded = [self._turn(turn, places) for turn in turns]
            item = pack(encoded, self.image_token_id, self.max_length)
        if item is None:
            whole = super()._encoded(record, places)
            return whole | {"turn_of": torch.zeros_like(whole["input_ids"])}
        return {key: torch.tensor(value) for key, value in item.items()} | {"id": record["id"]}

    def _turn(self, record: Mapping[str, Any], places: Places) -> dict[str, list[int]]:
        return encode_training(
            self.tokenizer, record, self.template, self.image_token_id, places, self.max_length, self.video_token_id
        )


def single_turns(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record's turns as records of one turn each, every one with all of its images; [] where it cannot be cut so.

    What is wrong with a conversation's form is for whoever encodes the whole to say.
    """
    turns = list(record["conversations"])
    system = turns[:1] if turns and turns[0]["from"] == "system" else []
    turns = turns[len(system) :]
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
    roles = [turn["from"] for turn in turns]
    pairs = len(turns) // 2
    if roles != ["human", "gpt"] * pairs or record.get("video"):
        return []
    shown = [turn["value"].count(IMAGE_MARKER) for turn in turns]
    images = record["image"]
    if sum(shown) != (len(images) if images else 0) or sum(shown) != shown[0]:
        return []
    front = f"{IMAGE_MARKER}\n" * len(images)
    found = []
    for number in range(pairs):
        question, answer = turns[2 * number], turns[2 * number + 1]
        asked = question if number == 0 else {**question, "value": front + question["value"]}
        found.append({**record, "conversations": [*system, asked, answer]})
    return found


def pack(
    encoded: Sequence[Mapping[str, list[int]]], image_token_id: int, max_length: int | None
) -> dict[str, list[int]] | None:
    """Sequences with what they begin with in common written once.

    Args:
        encoded: `input_ids` and `labels` of each.
        image_token_id: the placeholder's.
        max_length: sequences that would go beyond are left out, but for the first.

    Returns:
        `input_ids`, `labels` and `turn_of`; None where they do not share all of their images.
    """
    first = encoded[0]["input_ids"]
    columns = zip(*(each["input_ids"] for each in encoded), strict=False)
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    # Each goes on with a token that carries no loss: its neighbour to the left may be another's, and would have to foretell it.
    asked = min(next(at for at, label in enumerate(each["labels"]) if label != IGNORE_INDEX) for each in encoded)
    common = min(common, asked - 1)
    if common < 1 or any(image_token_id in each["input_ids"][common:] for each in encoded):
        return None
    ids, labels, turn_of = first[:common], [IGNORE_INDEX] * common, [0] * common
    for number, each in enumerate(encoded, start=1):
        rest = each["input_ids"][common:]
        if number > 1 and max_length is not None and len(ids) + len(rest) > max_length:
            break
        ids, labels = ids + rest, labels + each["labels"][common:]
        turn_of += [number] * len(rest)
    return {"input_ids": ids, "labels": labels, "turn_of": turn_of}
