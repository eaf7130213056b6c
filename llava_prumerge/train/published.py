"""What LLaVA-1.5's recipes start from, by the names they are published under: enough to plan a run before anything is downloaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from llava_prumerge.data.recipe import RecipeError
from llava_prumerge.efficiency.shapes import named_shapes
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.parts import VOCABULARY_MULTIPLE
from llava_prumerge.train.arguments import TrainArguments
from llava_prumerge.train.model_parts import LANGUAGE_MODELS, VISION_TOWERS, WHOLE_MODELS

PUBLISHED = {"model": WHOLE_MODELS, "language_model": LANGUAGE_MODELS, "vision_tower": VISION_TOWERS}
KINDS = {"small": ("llama", "dinov2"), "small-clip": ("qwen2", "clip_vision_model")}
"""Types of the language model and the tower, where they are not Llama and CLIP."""
TOKENS = {"small-clip": 151_665}
"""In the vocabulary, where its rows are more."""


@dataclass(frozen=True)
class Records:
    """A published record file.

    Attributes:
        text_only: samples without an image.
    """

    total: int
    text_only: int


RECORDS = {
    "blip_laion_cc_sbu_558k.json": Records(558_128, 0),
    "llava_v1_5_mix665k.json": Records(665_298, 40_688),
}


def published_config(arguments: TrainArguments) -> PruMergeLlavaConfig:
    """The configuration that the recipe's folders would give, by their names.

    Raises:
        RecipeError: a folder that is missing has no name known here.
    """
    if arguments.model is not None:
        names = [_known("model", arguments.model, WHOLE_MODELS)] * 2
    else:
        _check_mixed(arguments)
        names = [_known("language_model", arguments.language_model, LANGUAGE_MODELS)]
        names.append(_known("vision_tower", arguments.vision_tower, VISION_TOWERS))
    language, vision = named_shapes()[names[0]].language, named_shapes()[names[1]].vision
    kinds = [KINDS.get(name, ("llama", "clip_vision_model"))[at] for at, name in enumerate(names)]
    tokens = TOKENS.get(names[0], language.vocabulary)
    text = AutoConfig.for_model(kinds[0], **language.as_config(), tie_word_embeddings=language.embeddings == 1)
    if tokens + 2 > text.vocab_size:  # an image and a padding token
        text.vocab_size = math.ceil((tokens + 2) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    config = PruMergeLlavaConfig(
        vision_config=AutoConfig.for_model(kinds[1], **vision.as_config()).to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokens,
        image_seq_length=vision.patches,
        vision_feature_select_strategy="default",
        reduction=arguments.reduction,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.text_config.pad_token_id = tokens + 1
    return config


def _check_mixed(arguments: TrainArguments) -> None:
    """One part in a folder of a name that says nothing, and the other missing: it is the other that is to be fetched."""
    given = {"language_model": arguments.language_model, "vision_tower": arguments.vision_tower}
    here = {key: path is not None and Path(path).is_dir() for key, path in given.items()}
    for key, other in (("language_model", "vision_tower"), ("vision_tower", "language_model")):
        if here[key] and not here[other] and Path(str(given[key])).name not in PUBLISHED[key]:
            raise RecipeError(
                f"{other}={given[other]}: not here; with {key}={given[key]} a run is planned from both folders"
            )


def _known(key: str, path: str | None, names: dict[str, str]) -> str:
    name = Path(str(path)).name
    if name not in names:
        raise RecipeError(f"{key}={path}: not here, and not a name whose shape is known ({', '.join(names)})")
    return names[name]
