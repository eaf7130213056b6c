"""Whole models from their parts: a checkpoint's folder, or a language model, a vision tower and a projector put together."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from llava_prumerge.ground.naming import not_known
from llava_prumerge.model.attach import own_class, stock_class_of
from llava_prumerge.model.configuration import with_reduction
from llava_prumerge.model.decoder import SERVED
from llava_prumerge.model.families import family_of, family_types, is_own_type, stock_type
from llava_prumerge.model.family_processors import read_processor
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.part_names import part_names
from llava_prumerge.model.parts import assembled_config, input_side, load_image_processor, load_tower
from llava_prumerge.model.processors import make_processor, read_tokenizer
from llava_prumerge.model.quantized import settings_of
from llava_prumerge.model.strict_loading import in_one_line, load_strictly, read_config
from llava_prumerge.model.weight_files import LoadingError, check_fit, read_weights, shapes_of

LOGGER = logging.getLogger(__name__)
PROJECTOR_FILE = "mm_projector.safetensors"
AUTO = "auto"
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
PROCESSOR_FILES += ("tokenizer.model", "vocab.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(dtype: str | torch.dtype, device: str | torch.device = "cpu") -> torch.dtype:
    """A dtype by name; "auto" is what a device computes in: bfloat16 on a GPU (float16 on one without), float32 elsewhere.

    Raises:
        LoadingError: there is none of that name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == AUTO:
        if torch.device(device).type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in DTYPES:
        raise LoadingError(not_known("dtype", dtype, [AUTO, *DTYPES]))
    return DTYPES[dtype]


def check_attention(attn: str | None) -> str | None:
    """An attention implementation that transformers knows; None leaves the choice to it.

    Raises:
        LoadingError: it does not know it, or the library that it needs is not installed.
    """
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if attn is not None and attn not in known and "/" not in attn:  # a kernel of the Hub has a slash
        raise LoadingError(not_known("attention implementation", attn, sorted(set(known))))
    if attn == "flash_attention_2" and not is_flash_attn_2_available():
        raise LoadingError(f"attention implementation {attn} needs a GPU and flash-attn: pip install flash-attn")
    return attn


def load_whole(
    path: str | Path,
    reduction: dict[str, Any] | None,
    dtype: torch.dtype,
    attn: str | None,
    quantized: tuple[str, str] | None = None,
) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
    """A model whose folder, or repository on the Hub, holds all of it. Arguments and errors as `loading.load_model`.

    `quantized`: in how many bits, see `quantized.LOADS`, and the device that holds them. The processor is None where the
    folder has none of its files.
    """
    config = read_config(path)
    kind = stock_type(config.model_type)
    if kind not in family_types():
        known = ", ".join(family_types())
        raise LoadingError(f"{path} is a {config.model_type!r} checkpoint; types that can be loaded: {known}")
    stock, current = not is_own_type(config.model_type), getattr(config, "reduction", None)
    config = with_reduction(config, current if reduction is None else reduction)
    bits = {} if quantized is None else settings_of(quantized[0], kind, dtype, quantized[1])
    with in_one_line(path):
        model = own_class(stock_class_of(config)).from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attn, **bits
        )
    remark = family_of(kind).remark(model) if stock else None
    if remark is not None:
        LOGGER.warning("%s: %s", path, remark)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in PROCESSOR_FILES):
        return model, None
    processor = processor_of(path, config)
    model.model.words = processor.tokenizer
    return model, processor


def processor_of(path: str | Path, config: PreTrainedConfig) -> Any:
    """The processor of a whole model's folder, by the family that its configuration names.

    Raises:
        LoadingError: a file of it cannot be read, or a package is missing.
    """
    family = family_of(stock_type(config.model_type))
    if family.needs is not None and importlib.util.find_spec(family.needs[0]) is None:
        package, install = family.needs
        kind = stock_type(config.model_type)
        raise LoadingError(f"{path}: the processor of {kind} needs {package}: pip install {install}")
    with in_one_line(path):
        return (family.processor or read_processor)(path, config)


def assemble(
    language_model: str | Path,
    vision_tower: str | Path,
    projector: str | Path | None = None,
    reduction: dict[str, Any] | None = None,
    dtype: str | torch.dtype = "float32",
    attn: str | None = None,
) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA from a language model and a vision tower, as before stage 1.

    The modules of the loaded parts become modules of the whole, so nothing is held twice. A tokenizer without an image or a padding
    token gets it at the end of its vocabulary, and the embeddings grow to a multiple of 64, as llava-hf's did.

    Args:
        language_model: folder of a causal language model of one of the types `decoder.SERVED`, with its tokenizer.
        vision_tower: folder of a tower of one of the types `vision_tower.TOWERS` (of CLIP and SigLIP the vision part or the
            whole) with its image processor, or of an open_clip model as on the Hub.
        projector: file of a trained projector (`mm_projector.safetensors`), or the folder that holds it; None starts it at random.
        reduction: the block for config.json.
        dtype: of all weights.
        attn: attention implementation.

    Raises:
        LoadingError: the language model's folder has no tokenizer, a part is of a type that is not served, or the projector
            does not fit.
    """
    dtype, attn = parse_dtype(dtype), check_attention(attn)
    tokenizer = read_tokenizer(language_model)
    language = load_strictly(language_class(language_model), language_model, dtype=dtype, attn_implementation=attn)
    tower, image_processor = load_tower(vision_tower, dtype, attn), load_image_processor(vision_tower)
    config = assembled_config(language.config, tower.config, tokenizer, reduction, input_side(image_processor))
    if config.text_config.vocab_size > language.config.vocab_size:
        language.resize_token_embeddings(config.text_config.vocab_size)  # new rows are drawn around the mean row
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn)
    _adopt(model, language, tower)
    if projector is not None:
        load_projector(model, projector)
    model.generation_config = _ends_of(language, tokenizer)
    model.model.words = tokenizer
    return model, make_processor(tokenizer, image_processor, config)


def language_class(path: str | Path) -> type[PreTrainedModel]:
    """The class of a folder's causal language model.

    Raises:
        LoadingError: its configuration cannot be read, or its type is not served.
    """
    config = read_config(path)
    if config.model_type not in SERVED or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        known = ", ".join(kind for kind in SERVED if not kind.endswith("_vl_text"))
        raise LoadingError(f"{path}: a {config.model_type!r} is no language model that is served; there are: {known}")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _ends_of(language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Where generation begins and stops: at any end that the language model knows, of which its tokenizer names one."""
    known = language.generation_config.eos_token_id
    ends = {*([known] if isinstance(known, int) else known or ()), tokenizer.eos_token_id} - {None}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=next(iter(ends), None) if len(ends) < 2 else sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )


def _adopt(model: PruMergeLlavaForConditionalGeneration, language: PreTrainedModel, tower: torch.nn.Module) -> None:
    """Move loaded modules into the empty whole and start what is left."""
    inner = model.model
    for name, module in language.base_model.named_children():
        setattr(inner.language_model, name, module)
    model.lm_head, inner.vision_tower = language.lm_head, tower
    for module in (inner.multi_modal_projector, inner.reducer, inner.language_model.pruner):
        if module is not None:
            module.to_empty(device=language.device)
            module.apply(lambda part: inner._init_weights(part))
    model.train(False)


def load_projector(model: PruMergeLlavaForConditionalGeneration, path: str | Path) -> None:
    """Load a projector file into a model.

    Raises:
        LoadingError: the file is missing or not whole, its keys or shapes are others, or a value is not finite.
    """
    path = Path(path)
    file = path / PROJECTOR_FILE if path.is_dir() else path
    if not file.exists():
        raise LoadingError(f"projector {file} does not exist; stage 1 (scripts/pretrain.sh) writes it")
    parts, weights = part_names(model), read_weights(file)
    targets = {
        name.removeprefix("model."): value
        for name, value in model.named_parameters()
        if parts.role(name) == "projector"
    }
    check_fit(shapes_of(weights), shapes_of(targets), f"projector {file}")
    with torch.no_grad():
        for name, value in targets.items():
            value.copy_(weights[name])
