"""InternVL's own layout (OpenGVLab's, with remote code, which is never run): read as a checkpoint of transformers' -hf layout.

InternVL 2 to 3.5 are published in it: model_type internvl_chat, a vision_config and an llm_config. InternLM2 has Llama's layers
under other names, its queries, keys and values in one matrix; Qwen2 and other decoders stand there as transformers has them.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

from llava_prumerge.ground.files import write_json
from llava_prumerge.model.checkpoints.layout import MODEL_FILE, WHOLE, Layout, Record, Source, Tower, dtype_of
from llava_prumerge.model.checkpoints.plan import HEAD, PROJECTOR, TEXT, TOWER, shapes_of, with_dtype
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.decoder import SERVED
from llava_prumerge.model.processors import PIXELS_FILE, PROCESSOR_FILE
from llava_prumerge.model.tensor_files import Entry, Stored, list_model
from llava_prumerge.model.weight_files import LoadingError, name_first, read_object
from llava_prumerge.text.tokenizers import SETTINGS_FILE, TokenizerError, load_tokenizer, make_portable

LOGGER = logging.getLogger(__name__)
OWN_TYPE, HF_TYPE, INTERNLM2 = "internvl_chat", "internvl", "internlm2"
MARKS = {
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "video_token": "<video>",  # of no published tokenizer; it is told apart from the first in what the processor counts
}
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CONTENT = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
CHAT = (  # ChatML, as all releases but those on Phi-3 are asked
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3, PHI3_CHAT = (
    "phi3",
    "{% for m in messages %}<|{{ m['role'] }}|>\n" + _CONTENT + "<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
)
ENDS = {CHAT: "<|im_end|>", PHI3_CHAT: "<|end|>"}
"""What ends an answer; language models' own configurations name the end of a text alone."""
_ACCEPTED: dict[str, tuple[Any, ...]] = {  # switches, and the values that transformers' model is equal to
    "ps_version": ("v2",),
    "use_backbone_lora": (0, None, False),
    "use_llm_lora": (0, None, False),
    "pad2square": (False, None),
}
_VISION = (
    (r"embeddings\.class_embedding", "embeddings.cls_token"),
    (r"embeddings\.position_embedding", "embeddings.position_embeddings"),
    (r"embeddings\.patch_embedding\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"encoder\.layers\.(\d+)\.attn\.proj\.(.*)", r"encoder.layer.\1.attention.projection_layer.\2"),
    (r"encoder\.layers\.(\d+)\.attn\.([qk]_norm)\.(.*)", r"encoder.layer.\1.attention.\2.\3"),
    (r"encoder\.layers\.(\d+)\.norm1\.(.*)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"encoder\.layers\.(\d+)\.norm2\.(.*)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"encoder\.layers\.(\d+)\.ls([12])", r"encoder.layer.\1.lambda_\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.(.*)", r"encoder.layer.\1.mlp.\2"),
)
_INTERNLM2 = (
    (r"model\.tok_embeddings\.weight", TEXT + "embed_tokens.weight"),
    (r"model\.norm\.weight", TEXT + "norm.weight"),
    (r"output\.weight", HEAD + "weight"),
    (r"model\.layers\.(\d+)\.attention\.wo\.(.*)", TEXT + r"layers.\1.self_attn.o_proj.\2"),
    (r"model\.layers\.(\d+)\.feed_forward\.w1\.(.*)", TEXT + r"layers.\1.mlp.gate_proj.\2"),
    (r"model\.layers\.(\d+)\.feed_forward\.w3\.(.*)", TEXT + r"layers.\1.mlp.up_proj.\2"),
    (r"model\.layers\.(\d+)\.feed_forward\.w2\.(.*)", TEXT + r"layers.\1.mlp.down_proj.\2"),
    (r"model\.layers\.(\d+)\.attention_norm\.(.*)", TEXT + r"layers.\1.input_layernorm.\2"),
    (r"model\.layers\.(\d+)\.ffn_norm\.(.*)", TEXT + r"layers.\1.post_attention_layernorm.\2"),
)
_STOCK_TEXT = ((r"model\.(.*)", TEXT + r"\1"), (r"lm_head\.(.*)", HEAD + r"\1"))
_PROJECTOR = {"mlp1.0.": "layer_norm.", "mlp1.1.": "linear_1.", "mlp1.3.": "linear_2."}
_QKV, _WQKV = (
    re.compile(r"encoder\.layers\.(\d+)\.attn\.qkv\.(.*)"),
    re.compile(r"model\.layers\.(\d+)\.attention\.wqkv\.(.*)"),
)
_IDLE = re.compile(r"rotary_emb\.inv_freq$")


def _text_config(llm: Mapping[str, Any], file: Path) -> PreTrainedConfig:
    """The language model's configuration.

    Raises:
        LoadingError: transformers, or this project, has no such model, or it turns positions in another way.
    """
    kind, values = llm.get("model_type"), dict(llm)
    accepted = [one for one in SERVED if one in CONFIG_MAPPING]
    if kind not in (INTERNLM2, *accepted):
        raise LoadingError(f"{file}: llm_config is a {kind!r}; converted are {', '.join([INTERNLM2, *accepted])}")
    turning = values.pop("rope_scaling", None) or {}
    how = turning.get("rope_type", turning.get("type", "default"))
    lists = kind == PHI3 and how in ("su", "longrope")  # of factors, by the sequence's length
    if how not in ("default", "dynamic", "linear") and not lists:
        more = "" if kind == PHI3 else ", and of phi3 'su'"
        raise LoadingError(
            f"{file}: rope_scaling of llm_config is {how!r}; converted are none, 'dynamic' and 'linear'{more}"
        )
    rope = {"rope_type": "longrope" if lists else how, "rope_theta": values.pop("rope_theta", 10000.0)}
    if lists:
        rope |= {name: turning[name] for name in ("short_factor", "long_factor")}
        rope["original_max_position_embeddings"] = values.get("original_max_position_embeddings", 4096)
    values["rope_parameters"] = rope | ({"factor": turning["factor"]} if how in ("dynamic", "linear") else {})
    made = CONFIG_MAPPING["llama" if kind == INTERNLM2 else kind]
    if kind == INTERNLM2:
        values["attention_bias"] = bool(values.pop("bias", False))
    known = set(vars(made())) | {"rope_parameters"}
    dropped = {"model_type", "transformers_version", "architectures", "auto_map", "torch_dtype", "dtype"}
    return made(**{key: value for key, value in values.items() if key in known - dropped})


def _vision_config(values: Mapping[str, Any], side: int) -> dict[str, Any]:
    patch = values.get("patch_size", 14)
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "norm_type")
    return {
        **{key: values[key] for key in (*same, "layer_norm_eps") if key in values},
        "image_size": [side, side],
        "patch_size": [patch, patch],
        "attention_bias": values.get("qkv_bias", True),
        "use_qk_norm": values.get("qk_normalization", True),
        "num_channels": values.get("num_channels", 3),
    }


def hf_config(values: Mapping[str, Any], image_token: int, file: Path) -> PreTrainedConfig:
    """The -hf configuration of one of this layout.

    Raises:
        LoadingError: of a model that transformers' is not equal to, with the key and what is accepted.
    """
    for key, accepted in _ACCEPTED.items():
        if key in values and values[key] not in accepted:
            raise LoadingError(f"{file}: {key} is {values[key]!r}; converted is {accepted[0]!r}")
    for key in ("vision_config", "llm_config"):
        if not isinstance(values.get(key), dict):
            raise LoadingError(f"{file} has no {key}")
    vision, ratio = values["vision_config"], values.get("downsample_ratio", 0.5)
    side = values.get("force_image_size") or vision.get("image_size", 448)
    text = _text_config(values["llm_config"], file)
    return CONFIG_MAPPING[HF_TYPE](
        vision_config=_vision_config(vision, side),
        text_config=text.to_dict(),
        image_token_id=image_token,
        image_seq_length=int((side // vision.get("patch_size", 14)) ** 2 * ratio**2),
        downsample_ratio=ratio,
        vision_feature_layer=values.get("select_layer", -1),
        tie_word_embeddings=bool(values["llm_config"].get("tie_word_embeddings", False)),
    )


def split_wqkv(weight: Tensor, heads: int, groups: int, which: int) -> Tensor:
    """Queries (0), keys (1) or values (2) of InternLM2's one matrix: for each key head its query heads, the key and the value.

    Args:
        weight: [(heads + 2 groups) x D/H] rows, and columns for a matrix.
        heads: query heads; groups: key heads.
    """
    each = heads // groups
    parts = weight.unflatten(0, (groups, each + 2, -1))
    chosen = parts[:, :each] if which == 0 else parts[:, each + which - 1 : each + which]
    return chosen.flatten(0, 2).contiguous()


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, name in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    return None


def _entries(item: Stored, config: PreTrainedConfig, internlm2: bool) -> list[Entry]:
    """What becomes of a tensor; nothing for one that no parameter comes from.

    Raises:
        LoadingError: it is none of this layout's.
    """
    text, part, _, key = config.text_config, *item.key.partition(".")
    whole = lambda name: [Entry(name, item.shape, item.dtype, (item,))]  # noqa: E731
    if _IDLE.search(item.key):
        return []
    if part == "mlp1":
        for theirs, ours in _PROJECTOR.items():
            if item.key.startswith(theirs):
                return whole(PROJECTOR + ours + item.key.removeprefix(theirs))
    if part == "vision_model" and (found := _QKV.fullmatch(key)):
        stem = f"{TOWER}encoder.layer.{found[1]}.attention."
        make = lambda which: lambda weight: weight.chunk(3)[which].contiguous()  # noqa: E731
        return _thirds(item, stem, found[2], [item.shape[0] // 3] * 3, make)
    if part == "vision_model" and (name := _renamed(key, _VISION)):
        return whole(TOWER + name)
    if part == "language_model" and internlm2 and (found := _WQKV.fullmatch(key)):
        stem, heads, groups = f"{TEXT}layers.{found[1]}.self_attn.", text.num_attention_heads, text.num_key_value_heads
        width = item.shape[0] // (heads + 2 * groups)
        make = lambda which: lambda weight: split_wqkv(weight, heads, groups, which)  # noqa: E731
        return _thirds(item, stem, found[2], [heads * width, groups * width, groups * width], make)
    if part == "language_model" and (name := _renamed(key, _INTERNLM2 if internlm2 else _STOCK_TEXT)):
        return whole(name)
    raise LoadingError(f"{item} is no parameter of this model ({OWN_TYPE} layout)")


def _thirds(
    item: Stored, stem: str, leaf: str, rows: list[int], make: Callable[[int], Callable[[Tensor], Tensor]]
) -> list[Entry]:
    """Queries, keys and values that lie in one tensor."""
    return [
        Entry(
            f"{stem}{name}_proj.{leaf}",
            (count, *item.shape[1:]),
            item.dtype,
            (item,),
            f"{name} of {item.key}",
            make(at),
        )
        for at, (name, count) in enumerate(zip("qkv", rows, strict=True))
    ]


@dataclasses.dataclass
class Converted(Tower):
    """A whole model in the -hf layout; `tokenizer` is None where the source's could not be read."""

    tokenizer: Any = None


class InternVLChat(Layout):
    """The layout."""

    name = OWN_TYPE
    is_target = False
    becomes = "a checkpoint in the -hf layout"

    def kind_of(self, source: Source) -> str | None:
        """By the type."""
        return WHOLE if (source.config or {}).get("model_type") == OWN_TYPE else None

    def read(self, request: Request, kind: str) -> Converted:
        """Every tensor with its place, checked against what transformers' model has."""
        source = request.source
        file, values = source / "config.json", read_object(source / "config.json")
        chat = PHI3_CHAT if (values.get("llm_config") or {}).get("model_type") == PHI3 else CHAT
        tokenizer = _tokenizer(source, chat)
        config = hf_config(values, _image_token(source, tokenizer), file)
        internlm2 = values["llm_config"].get("model_type") == INTERNLM2
        found = {entry.key: entry for item in list_model(source) for entry in _entries(item, config, internlm2)}
        needed = shapes_of(config)
        embeddings, head = TEXT + "embed_tokens.weight", HEAD + "weight"
        if config.tie_word_embeddings and len(found.keys() & {embeddings, head}) == 1:
            there = found.get(embeddings) or found[head]
            found[embeddings] = dataclasses.replace(there, key=embeddings)
            found.pop(head, None)
            needed.pop(head)
        lacking, strange = [n for n in needed if n not in found], [n for n in found if n not in needed]
        if lacking or strange:
            what = (
                f"lacks {name_first(lacking)}" if lacking else f"holds {name_first(strange)}, which the model has not"
            )
            raise LoadingError(f"{source} {what}")
        for name, entry in found.items():
            if entry.shape != tuple(needed[name]):
                raise LoadingError(
                    f"{entry.sources[0]}: {name} is {entry.shape}, the configuration makes it {needed[name]}"
                )
        pixels = {"min_patches": values.get("min_dynamic_patch", 1), "max_patches": values.get("max_dynamic_patch", 12)}
        return Converted(list(found.values()), config, pixels, Record(request.called(source), self.name), tokenizer)

    def files(self, made: Converted, request: Request) -> dict[str, list[Entry]]:
        """The whole model."""
        return {MODEL_FILE: list(with_dtype({entry.key: entry for entry in made.found}, dtype_of(request)).values())}

    def write_beside(self, made: Converted, request: Request, folder: Path) -> None:
        """Configuration and processor."""
        config = made.config
        config.architectures, config.dtype = (
            ["InternVLForConditionalGeneration"],
            dtype_of(request) or made.found[0].dtype,
        )
        config.save_pretrained(folder)
        write_json(folder / "conversion.json", made.record.public())
        side = config.vision_config.image_size[0]
        text = config.text_config
        GenerationConfig(
            bos_token_id=text.bos_token_id,
            eos_token_id=answer_ends(text, made.tokenizer),
            pad_token_id=text.pad_token_id,
        ).save_pretrained(folder)
        pixels = {"size": {"height": side, "width": side}, "crop_to_patches": True, **made.pixels}
        pixels |= {"image_mean": list(MEAN), "image_std": list(SPREAD), "image_processor_type": "GotOcr2ImageProcessor"}
        write_json(folder / PIXELS_FILE, pixels | {"processor_class": "InternVLProcessor"})
        write_json(
            folder / PROCESSOR_FILE,
            {"processor_class": "InternVLProcessor", "image_seq_length": config.image_seq_length},
        )
        if made.tokenizer is not None:
            made.tokenizer.save_pretrained(folder)
            make_portable(made.tokenizer, folder)
            settings = read_object(folder / SETTINGS_FILE)  # by these names transformers' processor asks for its tokens
            write_json(folder / SETTINGS_FILE, settings | MARKS)
            (folder / "chat_template.jinja").write_text(made.tokenizer.chat_template, encoding="utf-8")


def _tokenizer(source: Path, chat: str) -> Any:
    """The tokenizer; None where only remote code could read it."""
    try:
        tokenizer = load_tokenizer(source)
    except TokenizerError as error:
        LOGGER.warning("%s: converted without a tokenizer: %s", source, error)
        return None
    tokenizer.chat_template = chat
    return tokenizer


def answer_ends(text: PreTrainedConfig, tokenizer: Any) -> list[int]:
    """Where generation stops: at the ends that the language model names, and at that of an answer."""
    known = text.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        ends += [vocabulary[ENDS[tokenizer.chat_template]]] if ENDS[tokenizer.chat_template] in vocabulary else []
    return list(dict.fromkeys(ends))


def _image_token(source: Path, tokenizer: Any) -> int:
    """The number of the placeholder.

    Raises:
        LoadingError: neither the tokenizer nor its list of added tokens knows it.
    """
    mark, file = MARKS["context_image_token"], source / "added_tokens.json"
    known = tokenizer.get_vocab() if tokenizer is not None else {}
    if mark not in known and file.is_file():
        known = read_object(file)
    if mark not in known:
        raise LoadingError(f"{source}: neither its tokenizer nor added_tokens.json knows {mark}")
    return int(known[mark])


LAYOUT = InternVLChat()
