"""SmolVLM: as Idefics 3, smaller; frames of a video are images to the stock code."""

from __future__ import annotations

from llava_prumerge.model.families import Family
from llava_prumerge.model.families.idefics3 import ShuffledHost
from llava_prumerge.model.vision_tower import TowerSpec, register_tower

register_tower("smolvlm_vision", TowerSpec("encoder.layers"))

FAMILY = Family(since="5.18", host=ShuffledHost, needs=("num2words", "'llava-prumerge[smolvlm]'"))
