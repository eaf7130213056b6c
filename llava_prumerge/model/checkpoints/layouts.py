"""The key layouts LLaVA is published in, each as prefixes and what they are called in our model.

`names` are the parameters of `PruMergeLlavaForConditionalGeneration`; `keys` are what files call them.

| layout | who | text model | tower | projector |
|---|---|---|---|---|
| original | liuhaotian/llava-v1.5-7b | model.layers. | none, or model.vision_tower.vision_tower.vision_model. | model.mm_projector.0. |
| hf-older | llava-hf to transformers 4.51 | language_model.model.layers. | vision_tower.vision_model. | multi_modal_projector.linear_1. |
| hf-newer | llava-hf from 4.52 | model.language_model.layers. | model.vision_tower.vision_model. | model.multi_modal_projector.linear_1. |
| ours | what save_pretrained writes | language_model.model.layers. | vision_tower. | multi_modal_projector.linear_1. |
| llama | a language model | model.layers. | | |
| tower | a CLIP, whole or its vision part | | vision_model. or nothing | |
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llava_prumerge.model.checkpoints.weights import Stored
from llava_prumerge.model.weight_files import LoadingError

TEXT, HEAD = "model.language_model.", "lm_head."
TOWER, PROJECTOR, REDUCER = "model.vision_tower.", "model.multi_modal_projector.", "model.reducer."
PRUNER = TEXT + "pruner."
VOCABULARY = (TEXT + "embed_tokens.weight", HEAD + "weight")
UNUSED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")  # computed, not learned
CLIP_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")

_LLAMA = (
    ("model.embed_tokens.", TEXT + "embed_tokens."),
    ("model.layers.", TEXT + "layers."),
    ("model.norm.", TEXT + "norm."),
    ("lm_head.", HEAD),
)
_PROJECTOR = (("mm_projector.0.", PROJECTOR + "linear_1."), ("mm_projector.2.", PROJECTOR + "linear_2."))
_OLDER_TEXT = (("language_model.model.", TEXT), ("language_model.lm_head.", HEAD))
_OLDER_PROJECTOR = ("multi_modal_projector.", PROJECTOR)
LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {  # the first prefix of a name is the one that is written
    "original": (
        *_LLAMA,
        *((f"model.{theirs}", ours) for theirs, ours in _PROJECTOR),
        ("model.vision_tower.vision_tower.vision_model.", TOWER),
    ),
    "hf-older": (*_OLDER_TEXT, ("vision_tower.vision_model.", TOWER), ("vision_tower.", TOWER), _OLDER_PROJECTOR),
    "hf-newer": (
        (TEXT, TEXT),
        (HEAD, HEAD),
        (TOWER + "vision_model.", TOWER),
        (TOWER, TOWER),
        (PROJECTOR, PROJECTOR),
        (REDUCER, REDUCER),
    ),
    "ours": (*_OLDER_TEXT, ("vision_tower.", TOWER), _OLDER_PROJECTOR, (REDUCER, REDUCER)),
    "llama": _LLAMA,
    "tower": (("vision_model.", TOWER), ("", TOWER)),
}
HF_LAYOUTS, OUR_LAYOUTS = ("hf-older", "hf-newer"), ("ours", "hf-newer", "hf-older")


def names_of(layout: str, key: str) -> list[str]:
    """What a key of a layout may be called in our model, likeliest first; none for a key of another layout."""
    return [ours + key.removeprefix(theirs) for theirs, ours in LAYOUTS[layout] if key.startswith(theirs)]


def key_of(layout: str, name: str) -> str:
    """What a layout calls a parameter of ours.

    Raises:
        LoadingError: the layout has no place for it.
    """
    fitting = [(ours, theirs) for theirs, ours in LAYOUTS[layout] if name.startswith(ours)]
    if not fitting or (layout != "ours" and name.startswith(PRUNER)):
        raise LoadingError(f"the {layout} layout has no place for {name}")
    ours, theirs = max(fitting, key=lambda pair: len(pair[0]))  # the first of the longest
    return theirs + name.removeprefix(ours)


def called(name: str, candidates: Iterable[str]) -> str:
    """What the first of some layouts that has a place for a parameter calls it; its own name where none has."""
    for layout in candidates:
        if any(name.startswith(ours) for _, ours in LAYOUTS[layout]):
            return key_of(layout, name)
    return name


def is_unused(key: str, layout: str) -> bool:
    """Whether a key may lie in a checkpoint although no parameter of the model comes from it."""
    return bool(UNUSED.search(key)) or (layout == "tower" and key.startswith(CLIP_TEXT))


def recognise(tensors: Iterable[Stored], candidates: Iterable[str]) -> str:
    """The layout of a checkpoint, by its keys.

    Raises:
        LoadingError: no candidate, or keys of two layouts in one checkpoint.
    """
    tensors = [item for item in tensors if not UNUSED.search(item.key)]
    known = {layout: [item for item in tensors if names_of(layout, item.key)] for layout in candidates}
    best = max(known, key=lambda layout: len(known[layout]))
    strangers = [item for item in tensors if not names_of(best, item.key)]
    if strangers:
        others = [layout for layout in LAYOUTS if layout != "tower" and names_of(layout, strangers[0].key)]
        belongs = f"the {others[0]} layout" if others else "no layout that is known"
        if len(strangers) == len(tensors):
            raise LoadingError(f"{strangers[0]} is of {belongs}; expected is {' or '.join(known)}")
        raise LoadingError(f"{strangers[0]} is of {belongs}, the rest is of the {best} layout: two are mixed")
    return best
