"""The folders a LLaVA is put together from where its layout has no place for them: a language model and a vision tower."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from llava_prumerge.model.checkpoints import plan
from llava_prumerge.model.checkpoints.layout import Record, Whole, recognise
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.open_clip import OpenClipFolder
from llava_prumerge.model.parts import UNUSED_BY_TOWER, assembled_config, load_image_processor, read_tower_config
from llava_prumerge.model.processors import read_tokenizer
from llava_prumerge.model.tensor_files import Stored, list_model
from llava_prumerge.model.weight_files import LoadingError, has_weights, read_object
from llava_prumerge.text.tokenizers import FAST_FILE, IMAGE_TOKEN, MODEL_FILE

LOGGER = logging.getLogger(__name__)
Given = Callable[[plan.Shapes], plan.Named]
"""From the model's shapes to parameters that come from elsewhere, such as a projector that was trained later."""
LLAMA = plan.Keys(
    "llama",
    (
        ("model.embed_tokens.", plan.TEXT + "embed_tokens."),
        ("model.layers.", plan.TEXT + "layers."),
        ("model.norm.", plan.TEXT + "norm."),
        ("lm_head.", plan.HEAD),
    ),
)
PROJECTOR_NAMES = tuple(f"{plan.PROJECTOR}linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias"))
CLIP = plan.Keys("tower", (("vision_model.", plan.TOWER), ("", plan.TOWER)), UNUSED_BY_TOWER)
TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),  # needed
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "bos_token_id", "eos_token_id", "tie_word_embeddings", "attention_bias"),
)


@dataclass(frozen=True)
class UnreadTokenizer:
    """Stands for a Vicuna tokenizer with our two tokens at its end, in dry runs from a configuration alone."""

    words: int

    def __len__(self) -> int:
        return self.words + 2

    def convert_tokens_to_ids(self, token: str) -> int:
        """The image token's id, or the padding token's."""
        return self.words if token == IMAGE_TOKEN else self.pad_token_id

    @property
    def pad_token_id(self) -> int:
        """The last of all."""
        return self.words + 1


def text_config(values: dict[str, Any], file: Path) -> LlamaConfig:
    """The language model's part of an original config.json, or of a plain Llama's.

    Raises:
        LoadingError: a size is missing.
    """
    for key in TEXT_KEYS[:5]:
        if not isinstance(values.get(key), int):
            raise LoadingError(f"{file} has no {key}")
    given = {key: values[key] for key in TEXT_KEYS if values.get(key) is not None}
    return LlamaConfig(**given, dtype=values.get("dtype") or values.get("torch_dtype"))


def find_tokenizer(folders: list[Path], request: Request) -> Path | None:
    """The first folder with a tokenizer in it; None where a dry run has none.

    Raises:
        LoadingError: no folder has one, and it is needed.
    """
    for folder in folders:
        if any((folder / name).is_file() for name in (FAST_FILE, MODEL_FILE)):
            return folder
    if not request.dry_run:
        raise LoadingError(f"{' and '.join(map(str, folders))}: no {FAST_FILE} and no {MODEL_FILE}")
    return None


def _named_folder(request: Request, option: str, name: str | None, what: str) -> Path:
    folder = request.place(option)
    option = f"--{option.replace('_', '-')}"
    if folder is None and name and Path(name).is_dir():
        folder = Path(name)
    if folder is None:
        raise LoadingError(
            f"{request.called(request.source)} needs {what}: {option} names the folder of {name or 'it'}"
        )
    if not (folder / "config.json").is_file() and not OpenClipFolder.is_one(folder):
        raise LoadingError(f"{option} {folder} has no config.json")
    return folder


def language_folder(request: Request, name: str | None) -> Path:
    """The folder of the language model that parts were trained on, by the option or by the name that the source has for it.

    Raises:
        LoadingError: none was given, or it is none.
    """
    return _named_folder(request, "language_model", name, "its base")


def tower_folder(request: Request, name: str | None) -> Path:
    """The folder of the vision tower, likewise.

    Raises:
        LoadingError: none was given, or it is no CLIP in transformers' layout.
    """
    folder = _named_folder(request, "vision_tower", name, "a vision tower")
    if OpenClipFolder.is_one(folder):
        raise LoadingError(f"{folder} is open_clip's; convert it first, its result serves as --vision-tower")
    return folder


def list_language_model(folder: Path, config: PreTrainedConfig, needed: bool) -> list[Stored]:
    """What a language model's folder holds, or would hold where it has its configuration alone and that is enough."""
    return _list(folder, config, needed, LlamaForCausalLM)


def _list(
    folder: Path, config: PreTrainedConfig, needed: bool, build: Callable[[Any], torch.nn.Module], prefix: str = ""
) -> list[Stored]:
    """A folder's tensors; without weights, the keys and shapes of the stock class that `build` makes of its configuration."""
    if needed or has_weights(folder):
        return list_model(folder)
    with torch.device("meta"):
        state = build(config).state_dict()
    kind, file = config.dtype or torch.float32, folder / "config.json"
    return [Stored(prefix + key, tuple(value.shape), kind, file) for key, value in state.items()]


def planned_projector(text: PreTrainedConfig, vision: PreTrainedConfig, file: Path, keys: plan.Keys) -> list[Stored]:
    """LLaVA-1.5's projector, from the configurations alone: two linear layers with a GELU between them."""
    kind, wide = text.dtype or torch.float32, text.hidden_size
    shapes = ((wide, vision.hidden_size), (wide,), (wide, wide), (wide,))
    return [Stored(keys.key_of(name), shape, kind, file) for name, shape in zip(PROJECTOR_NAMES, shapes, strict=True)]


def put_together(
    request: Request,
    record: Record,
    values: dict[str, Any],
    text: PreTrainedConfig,
    tensors: tuple[plan.Keys, list[Stored]],
    tokenizers: list[Path],
    given: Given | None = None,
    weights_needed: bool = True,
) -> Whole:
    """A whole model of a language model's tensors, with or without projector and tower among them, and a tower's folder.

    Args:
        record: gets what was taken from elsewhere.
        values: the original layout's config.json, empty where there is none.
        tensors: with their keys.
        tokenizers: folders to look for a tokenizer in, in this order.
        given: parameters that go before `tensors`.
        weights_needed: False plans with the tower's configuration where its weights are not there.

    Raises:
        LoadingError: the tower is another than the projector was made for, or something is missing.
    """
    where = find_tokenizer(tokenizers, request)
    tokenizer = UnreadTokenizer(text.vocab_size) if where is None else read_tokenizer(where)
    tower = tower_folder(request, values.get("mm_vision_tower"))
    vision, wide = read_tower_config(tower), values.get("mm_hidden_size")
    if wide not in (None, vision.hidden_size):
        file = request.source / "config.json"
        raise LoadingError(f"{file}: mm_hidden_size is {wide}, but the vision tower is {vision.hidden_size} wide")
    block = values.get("reduction") if request.reduction is None else request.reduction
    config = assembled_config(text, vision, tokenizer, block or None)
    config.vision_feature_layer = values.get("mm_vision_select_layer", -2)
    config.dtype = config.text_config.dtype = text.dtype
    shapes, keys = plan.shapes_of(config), tensors[0]
    found = plan.match(tensors[1], keys, shapes) | (given(shapes) if given else {})
    if any(name.startswith(plan.TOWER) for name in found):
        LOGGER.info("%s holds vision weights of its own; they are taken, not those of %s", request.source, tower)
    else:
        record.taken["vision tower"] = request.called(tower)
        needed = weights_needed and not request.dry_run
        found |= plan.match(_list(tower, vision, needed, AutoModel.from_config, "vision_model."), CLIP, shapes)
    plan.check_complete(found, shapes, f"{request.called(request.source)} with {tower}", (keys, CLIP))
    has_pixels = (tower / "preprocessor_config.json").is_file()
    if not has_pixels and not request.dry_run:
        raise LoadingError(f"{tower} has no preprocessor_config.json")
    pixels = load_image_processor(tower) if has_pixels else None
    return Whole(plan.with_vocabulary(found, config.text_config.vocab_size), config, tokenizer, pixels, where, record)


def base_of_parts(
    request: Request, base: Path, values: dict[str, Any], record: Record, given: Given, tokenizers: list[Path]
) -> Whole:
    """The model that parts belong to: a language model's folder, a tower's, and what was trained beside adapters.

    Without `merge` the base's weights need not be there; where they are, their keys and shapes are checked.
    """
    text = text_config(read_object(base / "config.json"), base / "config.json")
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        if values.get(key) not in (None, getattr(text, key)):
            told = f"{key} is {values[key]} in config.json, but {getattr(text, key)} in {base}"
            raise LoadingError(f"{request.source}: {told}")
    needed = request.merge and not request.dry_run
    tensors = list_language_model(base, text, needed)
    record.original_config, record.vision_tower = values or None, values.get("mm_vision_tower")
    found = recognise(tensors, (LLAMA,)), tensors
    return put_together(request, record, values, text, found, [*tokenizers, base], given, needed)
