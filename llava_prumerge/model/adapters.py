"""Trained parts without their base: projector, method parameters and LoRA adapters in one folder; and the way back.

Layout of such a folder (stage 1 writes it without the adapter files):

    adapter_config.json, adapter_model.safetensors   LoRA, as peft writes it
    mm_projector.safetensors                         keys `multi_modal_projector.*`
    method.safetensors                               parameters of the reducer and the pruner, where they have any
    config.json                                      the whole model's configuration with the reduction block
    base.json                                        which folders the base comes from
    tokenizer and image processor files
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llava_prumerge.ground.hub_names import is_missing, why_missing
from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.public import make_public, public_name
from llava_prumerge.model import strict_loading
from llava_prumerge.model.assembling import (
    PROJECTOR_FILE,
    assemble,
    load_projector,
    load_whole,
    parse_dtype,
    processor_of,
)
from llava_prumerge.model.base_file import BASE_FILE, read_base_file, write_base_file
from llava_prumerge.model.configuration import PruMergeLlavaConfig
from llava_prumerge.model.modeling import PruMergeLlavaForConditionalGeneration
from llava_prumerge.model.part_names import part_names
from llava_prumerge.model.processors import save_processor, save_settings
from llava_prumerge.model.strict_loading import in_one_line
from llava_prumerge.model.weight_files import (
    LoadingError,
    check_fit,
    check_weight_file,
    read_header,
    read_object,
    read_weights,
    shapes_of,
    whole_files,
)
from llava_prumerge.text.tokenizers import SETTINGS_FILE

if TYPE_CHECKING:
    from transformers import LlavaProcessor

METHOD_FILE = "method.safetensors"
ADAPTER_FILE, ADAPTER_CONFIG_FILE = "adapter_model.safetensors", strict_loading.ADAPTER_CONFIG_FILE
METHOD_PREFIXES = tuple(strict_loading.METHOD_PREFIXES.values())


@dataclass(frozen=True)
class Base:
    """Where the frozen weights come from: a complete model, or a language model and a vision tower.

    Attributes:
        seed: of what is drawn at random in putting them together (embedding rows of new tokens, a fresh projector).
    """

    model: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    seed: int = 0

    def build(
        self,
        projector: str | Path | None = None,
        reduction: dict[str, Any] | None = None,
        dtype: str | torch.dtype = "float32",
        attn: str | None = None,
    ) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
        """The model on CPU and its processor, equal whenever they are built from the same folders and seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.model is not None:
                model, processor = load_on_cpu(self.model, reduction, parse_dtype(dtype), attn)
            else:
                model, processor = assemble(self.language_model, self.vision_tower, None, reduction, dtype, attn)
            if projector is not None:
                load_projector(model, projector)
        return model, processor


def plain_model(model: nn.Module) -> PruMergeLlavaForConditionalGeneration:
    """The Llava inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def plain_name(name: str) -> str:
    """A parameter's name in the model without peft around it."""
    return name.removeprefix("base_model.model.")


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    state: Mapping[str, Tensor],
    base: Base,
    processor: LlavaProcessor,
    place: Path | None = None,
) -> None:
    """Write the trained parts of a model.

    Args:
        model: a peft model, or a Llava of which the projector alone (and the method) was trained.
        folder: made where it is missing.
        state: the trained parameters by their names in `model`, whole and on CPU (ZeRO-3 leaves shards in the model).
        base: what has to be built before these parts can be loaded.
        processor: saved beside them.
        place: where the folder will lie when it has its name, if not where it lies now.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = part_names(model)
    plain = {plain_name(name): tensor.contiguous() for name, tensor in state.items()}
    projector, method = (
        {name.removeprefix("model."): tensor for name, tensor in plain.items() if parts.role(name) == role}
        for role in ("projector", "method")
    )
    save_file(projector, folder / PROJECTOR_FILE, metadata={"format": "pt"})
    if method:
        save_file(method, folder / METHOD_FILE, metadata={"format": "pt"})
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        adapter = get_peft_model_state_dict(model, state_dict=dict(state), save_embedding_layers=False)
        save_file(
            {name: tensor.contiguous() for name, tensor in adapter.items()},
            folder / ADAPTER_FILE,
            metadata={"format": "pt"},
        )
        settings = copy.copy(model.peft_config["default"])
        settings.inference_mode, settings.base_model_name_or_path = True, public_name(base.model)
        settings.save_pretrained(str(folder))
    save_settings(inference_config(plain_model(model)), processor, folder)
    write_base(base, folder, place)


def save_complete(model: nn.Module, folder: Path, state: dict[str, Tensor] | None, processor: LlavaProcessor) -> None:
    """Write a whole model so that AutoModelForImageTextToText and `load_model` read it.

    Args:
        state: the weights where the model's own are shards.
    """
    config = model.config
    try:
        model.config = inference_config(model)
        # Keys as the modules are named, whatever a loading path or ZeRO stage has made of the model's renaming rules.
        model.save_pretrained(folder, state_dict=state, save_original_format=False)
    finally:
        model.config = config
    make_public(folder / "config.json")
    save_processor(processor, folder)


def load_complete(model: nn.Module, folder: Path) -> None:
    """Put the weights that `save_complete` wrote back into a model, a file at a time.

    Raises:
        LoadingError: a file is missing or not whole, keys or shapes are not those of the model, or a value is not finite.
    """
    files = whole_files(folder)
    for file in files:
        check_weight_file(file)
    found = {key: entry.shape for file in files for key, entry in read_header(file).items()}
    state = model.state_dict()
    stored = {state[key].data_ptr() for key in found if key in state}
    # Of tensors that are tied to each other one is stored.
    needed = {key: tuple(t.shape) for key, t in state.items() if key in found or t.data_ptr() not in stored}
    check_fit(found, needed, str(folder))
    for file in files:
        model.load_state_dict(read_weights(file), strict=False)


def inference_config(model: PruMergeLlavaForConditionalGeneration) -> PruMergeLlavaConfig:
    """The configuration as it should be stored: training switches the key-value cache off, users want it on."""
    config = copy.deepcopy(model.config)
    config.use_cache = config.get_text_config().use_cache = True
    config.architectures = [type(model).__name__]
    return config


def write_base(base: Base, folder: Path, place: Path | None = None) -> None:
    """Store the base's folders, also as seen from `place` (or `folder`), so that a tree that is moved as a whole still loads."""
    write_base_file(dataclasses.asdict(base), folder, place)


def read_base(folder: str | Path) -> Base:
    """Read base.json and find the folders it names; a released one names repositories on the Hub instead.

    Raises:
        LoadingError: the file or a folder it names is missing, or a base has other weights than in training.
    """
    return Base(**read_base_file(Path(folder)))


def load_on_cpu(
    path: str | Path,
    reduction: dict[str, Any] | None,
    dtype: torch.dtype,
    attn: str | None,
    quantized: tuple[str, str] | None = None,
) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
    """A whole model, or one of trained parts and their base, in evaluation mode. Arguments and errors as `loading.load_model`.

    `quantized` weights are on their device at once, see `assembling.load_whole`.
    """
    path = str(path)
    if is_missing(path):
        raise LoadingError(f"{path}: {why_missing(path)}")
    if (Path(path) / BASE_FILE).exists():
        if quantized is not None:
            raise LoadingError(
                f"{path} holds trained parts without their base; load={quantized[0]} takes a merged model"
            )
        return load_adapter(path, reduction, dtype, attn)
    model, processor = load_whole(path, reduction, dtype, attn, quantized)
    return model.eval(), processor


def load_adapter(
    path: str | Path,
    reduction: dict[str, Any] | None = None,
    dtype: str | torch.dtype = "float32",
    attn: str | None = None,
) -> tuple[PruMergeLlavaForConditionalGeneration, LlavaProcessor]:
    """Build the base of a folder of trained parts and put the parts on it, adapters merged into the weights.

    Args:
        path: a folder that `save_adapter` wrote.
        reduction: None takes what its config.json says; a block replaces it; {} switches it off.
        dtype: of the weights.
        attn: attention implementation.

    Raises:
        LoadingError: a file or the base is missing, or keys or shapes do not fit.
    """
    path = Path(path)
    check_parts(path)
    if reduction is None:
        reduction = read_reduction(path / "config.json")
        strict = True
    else:
        strict = False
    model, processor = read_base(path).build(path / PROJECTOR_FILE, reduction, dtype, attn)
    load_method(model, path, strict)
    if (path / ADAPTER_CONFIG_FILE).is_file():
        wrapped = add_lora(model, path)
        with in_one_line(path / ADAPTER_CONFIG_FILE):
            model = wrapped.merge_and_unload()
    if (path / SETTINGS_FILE).is_file():
        processor = processor_of(path, model.config)  # with the chat template of this training, not the base's
    return model.eval(), processor


def read_reduction(file: Path) -> dict[str, Any]:
    """The method's block in the config.json of trained parts; {} for none."""
    found = read_object(file).get("reduction") or {}
    if not isinstance(found, dict):
        raise LoadingError(f"{file}: reduction must be an object, found {shown(found)}")
    return found


def check_parts(folder: Path) -> None:
    """Look at a folder of trained parts before its base is built, which takes minutes.

    Raises:
        LoadingError: a file is missing or not whole; nothing is ever looked for elsewhere.
    """
    if not (folder / "config.json").is_file():
        raise LoadingError(f"{folder} has no config.json")
    there = [(folder / name).exists() for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE)]
    if any(there) and not all(there):
        has, lacks = (ADAPTER_CONFIG_FILE, ADAPTER_FILE) if there[0] else (ADAPTER_FILE, ADAPTER_CONFIG_FILE)
        raise LoadingError(f"{folder} has {has} but no {lacks}: its adapters are not complete")
    for name in (PROJECTOR_FILE, METHOD_FILE, ADAPTER_FILE):
        if name == PROJECTOR_FILE or (folder / name).exists():
            check_weight_file(folder / name)


def add_lora(model: nn.Module, folder: Path) -> Any:
    """Put the adapters of a folder on their base. -> the peft model, adapters not merged

    peft's own loader asks the Hub for a file that is missing here, and passes over tensors that do not fit.

    Raises:
        LoadingError: the configuration or the weights cannot be read, or do not fit the model.
    """
    from peft import PeftConfig, PeftModel

    file = folder / ADAPTER_CONFIG_FILE
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        wrapped = PeftModel(model, settings)
    except Exception as error:  # an odd value makes the library raise whatever it meets first
        reason = " ".join(str(error).split())[:300]
        raise LoadingError(f"{file} is no configuration of adapters for this model: {reason}") from error
    load_lora(wrapped, folder / ADAPTER_FILE)
    return wrapped


def load_lora(model: nn.Module, file: Path) -> None:
    """Load adapters' weights into a peft model that has just such adapters.

    Raises:
        LoadingError: the file is missing or not whole, keys or shapes are not those of the model, or a value is not finite.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = read_weights(file)
    # False: "auto" would ask the Hub for the base under its folder's name.
    needed = get_peft_model_state_dict(model, save_embedding_layers=False)
    check_fit(shapes_of(weights), shapes_of(needed), str(file))
    set_peft_model_state_dict(model, weights)


def load_method(model: PruMergeLlavaForConditionalGeneration, folder: Path, strict: bool) -> None:
    """Load the method's parameters.

    Args:
        strict: False leaves a method other than the trained one at its start values.

    Raises:
        LoadingError: the file is not whole, or strict, and the parameters are not exactly those of the model's method.
    """
    role = part_names(model).role
    targets = {n.removeprefix("model."): p for n, p in model.named_parameters() if role(n) == "method"}
    file = folder / METHOD_FILE
    stored = read_weights(file) if file.exists() else {}
    needed = {name: tuple(parameter.shape) for name, parameter in targets.items()}
    if strict:
        check_fit(shapes_of(stored), needed, str(file))
    if shapes_of(stored) == needed:
        with torch.no_grad():
            for name, parameter in targets.items():
                parameter.copy_(stored[name])
