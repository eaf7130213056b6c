"""The original layout: LLaVA-1.5 as its authors publish it, whole, as LoRA adapters or as a projector; no vision weights."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.public import without_private
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.model.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, BASE_FILE
from llava_prumerge.model.checkpoints import bases, layout, plan, trained
from llava_prumerge.model.checkpoints.layout import Parts, Record, Source, Whole
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.parts import read_tower_config
from llava_prumerge.model.tensor_files import Entry, list_model, list_tensors
from llava_prumerge.model.weight_files import LoadingError, has_weights, read_object
from llava_prumerge.text.tokenizers import FAST_FILE, MODEL_FILE, PAD_TOKEN, SETTINGS_FILE, save_tokenizer

LOGGER = logging.getLogger(__name__)
KEYS = plan.Keys(
    "original",
    (
        *bases.LLAMA.prefixes,
        ("model.mm_projector.0.", plan.PROJECTOR + "linear_1."),
        ("model.mm_projector.2.", plan.PROJECTOR + "linear_2."),
        ("model.vision_tower.vision_tower.vision_model.", plan.TOWER),
    ),
)
TYPES = ("llava", "llava_llama")  # LLaVA to 1.1, from 1.2 on
CLIP_NAME, CLIP_SHAPE = "openai/clip-vit-large-patch14-336", (1024, 24, 336, 14)
NON_LORA, ADAPTER_BIN, PROJECTOR_BIN = "non_lora_trainables.bin", "adapter_model.bin", "mm_projector.bin"
SWITCHES: dict[str, tuple[Any, ...]] = {  # LLaVA's own, and the values that our model is equal to
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", None),
    "mm_use_im_start_end": (False, None),
    "mm_use_im_patch_token": (False, None),
    "image_aspect_ratio": ("pad", "square", None),
    "mm_video_tower": (None,),
    "rope_scaling": (None,),
}
_DEFAULTS: dict[str, Any] = {  # of a config.json for a model that never had one in this layout
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": TYPES[-1],
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "tune_mm_mlp_adapter": False,
    "use_mm_proj": True,
}
_TOKENIZER_KEYS = (  # of tokenizer_config.json; transformers' later ones would stop the releases that LLaVA's code runs on
    *("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "padding_side", "add_bos_token"),
    *("add_eos_token", "clean_up_tokenization_spaces", "legacy"),
)


def _is_original(config: dict[str, Any]) -> bool:
    """llava-hf's config.json has the same type, and blocks for its parts; models with a video tower have that type too."""
    return config.get("model_type") in TYPES and "text_config" not in config and not config.get("mm_video_tower")


def _checked(file: Path) -> dict[str, Any]:
    """A config.json of this layout.

    Raises:
        LoadingError: of a LLaVA that is built otherwise, with the key of the file and what is accepted.
    """
    config = read_object(file)
    layout.check_switches(file, {"mm_projector_type": SWITCHES["mm_projector_type"][0]} | config, SWITCHES)
    return config


class Original(layout.Layout):
    """The layout."""

    name = "original"
    keys = (KEYS, bases.LLAMA)
    own_options = ("with_vision", "keep_rows")

    def kind_of(self, source: Source) -> str | None:
        """Adapters and projectors by their files, which may lack others; a whole model by its config.json."""
        if source.files & {ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTER_BIN, NON_LORA} and BASE_FILE not in source.files:
            return layout.PARTS
        alone = PROJECTOR_BIN in source.files and not has_weights(source.path)
        if alone or any("mm_projector." in key for key in source.keys):
            return layout.PROJECTOR
        return layout.WHOLE if _is_original(source.config or {}) else None

    def read(self, request: Request, kind: str) -> Whole | Parts:
        """A whole model, its tower from a folder of its own; adapters; or a projector."""
        if kind == layout.WHOLE:
            return _read_whole(request)
        if kind == layout.PARTS:
            return _read_adapters(request)
        file = request.source / PROJECTOR_BIN if request.source.is_dir() else request.source
        beside = file.with_name("config.json")
        known = beside.is_file() and _is_original(read_object(beside))
        return trained.read_projector(request, file, _checked(beside) if known else {})

    def files(self, made: Whole | Parts, request: Request) -> dict[str, list[Entry]]:
        """A whole model without tower and without rows that LLaVA does not know; or adapters and projector."""
        found = self.placed(made, request)
        if isinstance(made, Whole):
            if not request.with_vision:
                found = {name: entry for name, entry in found.items() if not name.startswith(plan.TOWER)}
            found = plan.with_vocabulary(found, rows_of(made, request.keep_rows))
            return {layout.MODEL_FILE: plan.with_keys(found, KEYS)}
        prefix = trained.PEFT if made.adapter else ""
        projector = [dataclasses.replace(one, key=prefix + KEYS.key_of(name)) for name, one in made.projector.items()]
        files = {NON_LORA if made.adapter else PROJECTOR_BIN: projector}
        if made.adapter:
            named = {prefix + KEYS.key_of(name): item for name, item in made.adapter.items()}
            files[ADAPTER_FILE] = [Entry(key, item.shape, item.dtype, (item,)) for key, item in named.items()]
        return files

    def write_beside(self, made: Whole | Parts, request: Request, folder: Path) -> None:
        """What LLaVA's own code needs."""
        if isinstance(made, Whole):
            _write_beside_whole(made, request, folder)
            return
        if made.adapter:
            bare = lambda modules: sorted({module.rpartition(".")[2] for module in modules})  # noqa: E731
            write_json(folder / ADAPTER_CONFIG_FILE, trained.adapter_settings(made, bare, "CAUSAL_LM"))
        if made.whole is not None and made.base is not None:
            # LLaVA's code gives the base so many rows as this says: others than its own would start uninitialised.
            rows = rows_of(made.whole)
            if made.base.language_model is not None:
                rows = made.whole.found[plan.VOCABULARY[0]].sources[0].shape[0]
            tower = _tower_name(made.whole, request, made.base.vision_tower)
            write_json(folder / "config.json", original_config(made.whole, rows, {"mm_vision_tower": tower}))


def _read_whole(request: Request) -> Whole:
    source, file = request.source, request.source / "config.json"
    values = _checked(file)
    text = bases.text_config(values, file)
    if has_weights(source) or not request.dry_run:
        tensors = list_model(source)
        found = layout.recognise(tensors)
        if found is not KEYS:
            raise LoadingError(f"{file} says original layout, but {tensors[0]} is of the {found.name} layout")
    else:
        vision = read_tower_config(bases.tower_folder(request, values.get("mm_vision_tower")))
        tensors = bases.list_language_model(source, text, False)
        tensors += bases.planned_projector(text, vision, file, KEYS)
    record = Record(request.called(source), "original", values.get("mm_vision_tower"), original_config=values)
    if (source / MODEL_FILE).is_file() and (source / SETTINGS_FILE).is_file():
        record.original_tokenizer = read_object(source / SETTINGS_FILE)
    stray = source / PROJECTOR_BIN

    def beside(shapes: plan.Shapes) -> plan.Named:
        if not stray.is_file() or any(KEYS.names_of(t.key)[0].startswith(plan.PROJECTOR) for t in tensors):
            return {}
        record.taken["projector"] = str(stray)
        LOGGER.info("the projector is taken from %s", stray)
        return plan.match(list_tensors(stray), KEYS, shapes)

    return bases.put_together(request, record, values, text, (KEYS, tensors), [source], beside)


def _read_adapters(request: Request) -> Parts:
    """Raises LoadingError: what the source lacks nobody else has, or adapters, projector and base are not of one model."""
    source = request.source
    record = Record(request.called(source), "original-lora")
    weights = next((f for n in (ADAPTER_FILE, ADAPTER_BIN) if (f := source / n).is_file()), None)
    if weights is None:
        raise LoadingError(f"{source} has no {ADAPTER_FILE} and no {ADAPTER_BIN}: there are no adapters")
    settings = read_object(_find(request, record, ADAPTER_CONFIG_FILE))
    projector = _find(request, record, NON_LORA, PROJECTOR_BIN)
    base = bases.language_folder(request, settings.get("base_model_name_or_path"))
    file = _find(request, record, "config.json", needed=False)
    if file is None:
        record.taken["config.json (with LLaVA-1.5's settings)"] = request.called(base)
        LOGGER.warning("%s has no config.json; taken from %s, with LLaVA-1.5's settings", source, base)
    values = {} if file is None else _checked(file)
    given = partial(trained.match_projector, list_tensors(projector), whole=request.merge)
    whole = bases.base_of_parts(request, base, values, record, given, _places(request))
    shapes = {name: entry.shape for name, entry in whole.found.items()}
    adapter = trained.match_adapter(list_tensors(weights), settings, shapes)
    tower = bases.tower_folder(request, values.get("mm_vision_tower"))
    return trained.parts_of(whole, adapter, settings, trained.named_base(request, base, tower), record)


def _places(request: Request) -> list[Path]:
    """The source, and the folder that stands in for it."""
    return [folder for key in ("source", "missing_from") if (folder := request.place(key)) is not None]


def _find(request: Request, record: Record, *names: str, needed: bool = True) -> Any:
    """The first of some files; one that is not in the source is put on record. None where none is anywhere.

    Raises:
        LoadingError: none is anywhere, and it is needed.
    """
    places = _places(request)
    found = [folder / name for folder in places for name in names if (folder / name).is_file()]
    if not found and needed:
        hint = "" if len(places) > 1 else "; --missing-from names a folder to take it from"
        raise LoadingError(f"{' and '.join(map(str, places))}: no {' or '.join(names)}{hint}")
    if not found:
        return None
    if found[0].parent != request.source:
        record.taken[found[0].name] = request.called(found[0].parent)
        LOGGER.warning("%s has no %s; taken from %s", request.source, " or ".join(names), found[0].parent)
    return found[0]


def rows_of(whole: Whole, keep: bool = False) -> int:
    """Rows of the vocabulary in this layout, which knows no image, video or padding token.

    Where these are the tokenizer's last, all rows from the first of them go (32064 -> 32000); a vocabulary that has them inside
    stays as it is.
    """
    config, words = whole.config, len(whole.tokenizer)
    own = (config.image_token_index, getattr(config, "video_token_index", None), whole.tokenizer.pad_token_id)
    while words - 1 in own:
        words -= 1
    rows: int = config.text_config.vocab_size
    return words if words < len(whole.tokenizer) and not keep else rows


def _tower_name(whole: Whole, request: Request, base: str | None = None) -> str:
    """What LLaVA's code should load as the vision tower, which its layout does not hold.

    Args:
        base: the tower that trained parts are put on; it is named where no name is known.

    Raises:
        LoadingError: nobody said, and it is not the shape of LLaVA-1.5's.
    """
    vision = whole.config.vision_config
    shape = (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size)
    given = request.vision_tower and str(request.vision_tower)
    named = given or whole.record.vision_tower or (CLIP_NAME if shape == CLIP_SHAPE else base)
    if named is None:
        raise LoadingError(f"{request.source} does not say which CLIP it has: --vision-tower names it")
    return named


def original_config(whole: Whole, rows: int, towers: dict[str, Any]) -> dict[str, Any]:
    """A config.json of this layout, on top of what it was before it was converted.

    Args:
        towers: what LLaVA's code should load as vision towers, by key.

    Raises:
        LoadingError: a setting of the language model has no place in it.
    """
    config = whole.config
    text, vision = config.text_config.to_dict(), config.vision_config
    values: dict[str, Any] = {key: text[key] for key in bases.TEXT_KEYS if text.get(key) is not None}
    rope = text.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise LoadingError(f"rope_parameters {rope} have no place in the original layout")
    if rope.get("rope_theta", 10000.0) != 10000.0:
        values["rope_theta"] = rope["rope_theta"]
    if text.get("head_dim") not in (None, text["hidden_size"] // text["num_attention_heads"]):
        raise LoadingError(f"head_dim {text['head_dim']} has no place in the original layout")
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    values |= {"vocab_size": rows, "pad_token_id": 0, "use_cache": True, "torch_dtype": dtype}
    values |= towers | {"mm_hidden_size": vision.hidden_size}
    values |= {"mm_vision_select_layer": config.vision_feature_layer}
    if config.reduction:
        values["reduction"] = config.reduction
    before = {key: value for key, value in (whole.record.original_config or {}).items() if key != "reduction"}
    return _DEFAULTS | without_private(before) | values


def _write_beside_whole(whole: Whole, request: Request, folder: Path) -> None:
    values = whole_config(whole, request, {"mm_vision_tower": _tower_name(whole, request)})
    if request.with_vision:  # LLaVA's code then loads the tower before the checkpoint, not after it
        values["unfreeze_mm_vision_tower"] = True
    write_whole(whole, values, folder)


def whole_config(whole: Whole, request: Request, towers: dict[str, Any]) -> dict[str, Any]:
    """`original_config` of a whole model in the type that was asked for."""
    dtype = layout.dtype_of(request)
    if dtype is not None:
        whole.config.dtype = dtype
    return original_config(whole, rows_of(whole, request.keep_rows), towers)


def write_whole(whole: Whole, values: dict[str, Any], folder: Path) -> None:
    """What goes beside a whole model's weights, its config.json given."""
    write_json(folder / "config.json", values)
    ids = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in values}
    write_json(folder / "generation_config.json", ids)
    _write_tokenizer(whole, folder)


def _write_tokenizer(whole: Whole, folder: Path) -> None:
    """The tokenizer without our tokens; LLaVA's own code needs tokenizer.model, which is copied where there is one."""
    save_tokenizer(whole.tokenizer, folder)
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    values, words = read_json_object(folder / FAST_FILE), rows_of(whole)
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < words]
    write_json(folder / FAST_FILE, values)
    saved = read_object(folder / SETTINGS_FILE)
    settings = {key: saved[key] for key in _TOKENIZER_KEYS if saved.get(key) is not None}
    if settings.get("pad_token") == PAD_TOKEN:
        settings["pad_token"] = settings.get("unk_token", "<unk>")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    source = whole.tokenizer_folder
    if source is not None and (source / MODEL_FILE).is_file():
        shutil.copyfile(source / MODEL_FILE, folder / MODEL_FILE)
        settings["tokenizer_class"] = "LlamaTokenizer"
    else:
        LOGGER.warning("%s has no %s, which LLaVA's own code reads; %s goes out alone", source, MODEL_FILE, FAST_FILE)
    write_json(folder / SETTINGS_FILE, whole.record.original_tokenizer or settings)


LAYOUT = Original()
