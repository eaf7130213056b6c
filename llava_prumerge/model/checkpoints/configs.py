"""config.json and tokenizer of the original layout, to ours and back."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerBase

from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.public import without_private
from llava_prumerge.model.checkpoints.weights import read_json
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.parts import assembled_config
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.text.tokenizers import FAST_FILE, IMAGE_TOKEN, MODEL_FILE, PAD_TOKEN, save_tokenizer

LOGGER = logging.getLogger(__name__)
ORIGINAL_TYPES = ("llava", "llava_llama")  # LLaVA to 1.1, from 1.2 on
CLIP_NAME = "openai/clip-vit-large-patch14-336"
_ACCEPTED: dict[str, tuple[Any, ...]] = {  # LLaVA's switches, and the values that our model is equal to
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", None),
    "mm_use_im_start_end": (False, None),
    "mm_use_im_patch_token": (False, None),
    "image_aspect_ratio": ("pad", "square", None),
    "rope_scaling": (None,),
}
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_bias",
)
_TOKENIZER_KEYS = (  # of tokenizer_config.json; transformers' later ones would stop the releases that LLaVA's code runs on
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "model_max_length",
    "padding_side",
    "add_bos_token",
    "add_eos_token",
    "clean_up_tokenization_spaces",
    "legacy",
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


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is of the original layout; llava-hf's has blocks for its parts."""
    return config.get("model_type") in ORIGINAL_TYPES and "text_config" not in config


def check_original(config: dict[str, Any], file: Path) -> None:
    """Refuse LLaVAs that are built otherwise.

    Raises:
        LoadingError: with the key of the file and what is accepted.
    """
    for key, accepted in _ACCEPTED.items():
        value = config.get(key)
        if value not in accepted and not (key == "mm_projector_type" and key not in config):
            raise LoadingError(f"{file}: {key} is {value!r}; converted are {' and '.join(map(repr, accepted))}")


def text_config(config: dict[str, Any], file: Path) -> LlamaConfig:
    """The language model's part of an original config.json, or of a plain Llama's.

    Raises:
        LoadingError: a size is missing.
    """
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(config.get(key), int):
            raise LoadingError(f"{file} has no {key}")
    values = {key: config[key] for key in _TEXT_KEYS if config.get(key) is not None}
    return LlamaConfig(**values, dtype=config.get("dtype") or config.get("torch_dtype"))


def whole_config(
    text: LlamaConfig,
    vision: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | UnreadTokenizer,
    original: dict[str, Any],
    reduction: dict[str, Any] | None,
    file: Path,
) -> PruMergeLlavaConfig:
    """Our configuration of the parts.

    Raises:
        LoadingError: the tower is another than the projector was made for.
    """
    wide = original.get("mm_hidden_size")
    if wide not in (None, vision.hidden_size):
        raise LoadingError(f"{file}: mm_hidden_size is {wide}, but the vision tower is {vision.hidden_size} wide")
    config = assembled_config(text, vision, tokenizer, reduction)
    config.vision_feature_layer = original.get("mm_vision_select_layer", -2)
    config.dtype = config.text_config.dtype = text.dtype
    return config


def find_tokenizer(folders: list[Path | None]) -> Path | None:
    """The first folder with a tokenizer in it."""
    return next(
        (f for f in folders if f is not None and any((f / name).is_file() for name in (FAST_FILE, MODEL_FILE))), None
    )


def rows_without_ours(config: PruMergeLlavaConfig, tokenizer: PreTrainedTokenizerBase | UnreadTokenizer) -> int:
    """Rows of the vocabulary in the original layout, which knows no image and no padding token.

    Where the two are the tokenizer's last, all rows from the first of them go (32064 -> 32000); a vocabulary that has them inside
    stays as it is.
    """
    words = len(tokenizer)
    while words - 1 in (config.image_token_index, tokenizer.pad_token_id):
        words -= 1
    return words if words < len(tokenizer) else config.text_config.vocab_size


def original_config(
    config: PruMergeLlavaConfig, rows: int, tower: str, remembered: dict[str, Any] | None
) -> dict[str, Any]:
    """An original config.json of our configuration, on top of what it was before it was converted."""
    text, vision = config.text_config.to_dict(), config.vision_config
    values: dict[str, Any] = {key: text[key] for key in _TEXT_KEYS if text.get(key) is not None}
    rope = text.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise LoadingError(f"rope_parameters {rope} have no place in the original layout")
    if rope.get("rope_theta", 10000.0) != 10000.0:
        values["rope_theta"] = rope["rope_theta"]
    if text.get("head_dim") not in (None, text["hidden_size"] // text["num_attention_heads"]):
        raise LoadingError(f"head_dim {text['head_dim']} has no place in the original layout")
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    values |= {"vocab_size": rows, "pad_token_id": 0, "use_cache": True, "torch_dtype": dtype}
    values |= {
        "mm_vision_tower": tower,
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_select_layer": config.vision_feature_layer,
    }
    defaults: dict[str, Any] = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": ORIGINAL_TYPES[-1],
        "image_aspect_ratio": "pad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    kept = {key: value for key, value in without_private(remembered or {}).items() if key not in values}
    result = defaults | kept | values
    if config.reduction:
        result["reduction"] = config.reduction
    return result


def write_original_tokenizer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    words: int,
    remembered: dict[str, Any] | None,
) -> None:
    """The tokenizer without the tokens from `words` on; LLaVA's own code needs tokenizer.model, which is copied where there is one.

    Args:
        remembered: tokenizer_config.json as it was before the model was converted.
    """
    save_tokenizer(tokenizer, folder)
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < words]
    write_json(file, values)
    saved = read_json(folder / "tokenizer_config.json")
    settings = {key: saved[key] for key in _TOKENIZER_KEYS if saved.get(key) is not None}
    if settings.get("pad_token") == PAD_TOKEN:
        settings["pad_token"] = settings.get("unk_token", "<unk>")
    plain = source / "tokenizer.model"
    if plain.is_file():
        shutil.copyfile(plain, folder / plain.name)
        settings["tokenizer_class"] = "LlamaTokenizer"
    else:
        LOGGER.warning("%s has no tokenizer.model, which LLaVA's own code reads; tokenizer.json goes out alone", source)
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", remembered or settings)
