"""Video-LLaVA's own layout (LanguageBind/Video-LLaVA-7B): LLaVA's language model and projector with two vision towers.

Published checkpoints hold both towers. What tensors do not tell of them (heads, activation) is in the configuration of the
image tower's folder, LanguageBind_Image; a checkpoint without one of them gets it from its folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedTokenizerBase, VideoLlavaConfig

from llava_prumerge.ground.files import write_json
from llava_prumerge.model.checkpoints import bases, layout, plan
from llava_prumerge.model.checkpoints.layouts import original
from llava_prumerge.model.checkpoints.request import Request
from llava_prumerge.model.configuration import own_config_class
from llava_prumerge.model.parts import vocabulary_rows
from llava_prumerge.model.processors import PIXELS_FILE, PROCESSOR_FILE
from llava_prumerge.model.tensor_files import Entry, Stored, list_model
from llava_prumerge.model.towers.temporal_clip import TemporalClipConfig
from llava_prumerge.model.weight_files import LoadingError, read_object
from llava_prumerge.text.tokenizers import IMAGE_TOKEN, TokenizerError, add_image_tokens, load_tokenizer, make_portable

IMAGES, VIDEOS, VIDEO_TOKEN = "model.image_tower.", "model.video_tower.", "<video>"
KEYS = plan.Keys(
    "video_llava",
    (
        *bases.LLAMA.prefixes,
        ("model.mm_projector.0.", plan.PROJECTOR + "linear_1."),
        ("model.mm_projector.2.", plan.PROJECTOR + "linear_2."),
        ("model.image_tower.image_tower.", IMAGES),
        ("model.video_tower.video_tower.", VIDEOS),
    ),
)
TOWERS = {
    "mm_image_tower": "LanguageBind/LanguageBind_Image",
    "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
}
FOLDERS = {IMAGES: ("vision_tower", "mm_image_tower"), VIDEOS: ("video_tower", "mm_video_tower")}
"""For each tower the option that names its folder, and the key of config.json that names it on the Hub."""
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHAT = (  # LLaVA's Vicuna template, as Video-LLaVA is asked
    "{% set ns = namespace(opening='A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user\\'s questions. USER: ') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.opening = (m['content'] if m['content'] is string else m['content'][0]['text'])"
    " + ' USER: ' %}{% elif m['role'] == 'user' %}{{ ns.opening }}{% set ns.opening = 'USER: ' %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% else %} ASSISTANT: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


class VideoLlava(layout.Layout):
    """The layout."""

    name = "video_llava"
    keys = (KEYS,)
    families = ("video_llava",)

    def kind_of(self, source: layout.Source) -> str | None:
        """By its second tower; parts that were trained are not of it."""
        config = source.config or {}
        ours = config.get("model_type") in original.TYPES and config.get("mm_video_tower")
        return layout.WHOLE if ours and "text_config" not in config else None

    def read(self, request: Request, kind: str) -> layout.Whole:
        """A whole model."""
        source, file = request.source, request.source / "config.json"
        values = read_object(file)
        accepted = {key: known for key, known in original.SWITCHES.items() if key != "mm_video_tower"}
        layout.check_switches(file, values, accepted)
        tensors, record = list_model(source), layout.Record(request.called(source), self.name, original_config=values)
        if (source / original.MODEL_FILE).is_file() and (source / original.SETTINGS_FILE).is_file():
            record.original_tokenizer = read_object(source / original.SETTINGS_FILE)
        towers = [(KEYS, tensors), *(_other_tower(request, record, tensors, tower, values) for tower in FOLDERS)]
        settings = _settings(request, values)
        text = bases.text_config(values, file)
        where = bases.find_tokenizer([source], request)
        if where is None:
            raise LoadingError(f"{source} has no tokenizer")
        tokenizer = _tokenizer(where)
        config = _config(values, text, settings | {"num_frames": _frames(towers)}, tokenizer)
        config.reduction = (values.get("reduction") if request.reduction is None else request.reduction) or None
        shapes = plan.shapes_of(config)
        found: plan.Named = {}
        for keys, held in towers:
            found |= plan.match(held, keys, shapes)
        plan.check_complete(found, shapes, request.called(source), (KEYS,))
        found = plan.with_vocabulary(found, config.text_config.vocab_size)
        write = partial(_write_processor, tokenizer, config)
        return layout.Whole(found, config, tokenizer, None, where, record, write)

    def files(self, made: layout.Whole | layout.Parts, request: Request) -> dict[str, list[Entry]]:
        """The whole model, both towers with it.

        Raises:
            LoadingError: its towers have no attention over time, or it is adapters alone.
        """
        found = self.placed(made, request)
        if isinstance(made, layout.Parts):
            raise LoadingError(f"the {self.name} layout holds whole models; --merge makes one of adapters")
        if not isinstance(made.config.vision_config, TemporalClipConfig):
            raise LoadingError(
                f"the {self.name} layout's video tower attends over time, and {request.source}'s does not"
            )
        return {layout.MODEL_FILE: plan.with_keys(plan.with_vocabulary(found, original.rows_of(made)), KEYS)}

    def write_beside(self, made: layout.Whole, request: Request, folder: Path) -> None:
        """What Video-LLaVA's own code needs."""
        before = made.record.original_config or {}
        named = {key: before.get(key, name) for key, name in TOWERS.items()}
        values = original.whole_config(made, request, named)
        values.pop("mm_vision_tower", None)
        original.write_whole(made, values, folder)


def _folder(request: Request, tower: str, values: dict[str, Any]) -> Path:
    """The folder of a tower.

    Raises:
        LoadingError: none was named, or it has no config.json.
    """
    option, key = FOLDERS[tower]
    folder: Path | None = request.place(option)
    shown = f"--{option.replace('_', '-')}"
    if folder is None:
        what = "its weights" if tower == VIDEOS else "its heads and activation, which no tensor tells"
        raise LoadingError(f"{request.called(request.source)} needs {what}: {shown} names the folder of {values[key]}")
    if not (folder / "config.json").is_file():
        raise LoadingError(f"{shown} {folder} has no config.json")
    return folder


def _other_tower(
    request: Request, record: layout.Record, tensors: list[Stored], tower: str, values: dict[str, Any]
) -> tuple[plan.Keys, list[Stored]]:
    """The tensors of a tower's folder, where the checkpoint holds none of it."""
    keys = plan.Keys("tower", (("vision_model.", tower), ("", tower)), bases.UNUSED_BY_TOWER)
    if any(KEYS.names_of(item.key)[:1] and KEYS.names_of(item.key)[0].startswith(tower) for item in tensors):
        return keys, []
    folder = _folder(request, tower, values)
    record.taken[FOLDERS[tower][0].replace("_", " ")] = request.called(folder)
    return keys, list_model(folder)


def _settings(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    """CLIP's settings in the image tower's configuration, which has others too."""
    given = read_object(_folder(request, IMAGES, values) / "config.json")
    vision = given.get("vision_config", given)
    return {key: value for key, value in vision.items() if key in CLIPVisionConfig.__annotations__}


def _frames(towers: list[tuple[plan.Keys, list[Stored]]]) -> int:
    """How many frames the video tower has embeddings for.

    Raises:
        LoadingError: it has none.
    """
    for keys, held in towers:
        for item in held:
            name = next(iter(keys.names_of(item.key)), "")
            if name.startswith(VIDEOS) and name.endswith(".temporal_embedding"):
                return item.shape[1]
    place = KEYS.key_of(f"{VIDEOS}encoder.layers.0.temporal_embedding")
    raise LoadingError(f"the video tower lacks {place}: it has no attention over time")


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The language model's, with tokens for images, videos and padding at its end, in transformers' order."""
    try:
        tokenizer = load_tokenizer(folder)
    except TokenizerError as error:
        raise LoadingError(str(error)) from error
    tokenizer.add_tokens([IMAGE_TOKEN, VIDEO_TOKEN], special_tokens=True)
    add_image_tokens(tokenizer)
    tokenizer.padding_side, tokenizer.chat_template = "left", CHAT
    return tokenizer


def _config(
    values: dict[str, Any], text: Any, vision: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> VideoLlavaConfig:
    tower = TemporalClipConfig(**vision)
    patches = (tower.image_size // tower.patch_size) ** 2
    config = own_config_class(VideoLlavaConfig)(
        vision_config=tower.to_dict(),
        text_config={**text.to_dict(), "vocab_size": vocabulary_rows(tokenizer, text.vocab_size)},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        image_seq_length=patches,
        video_seq_length=(patches + 1) * tower.num_frames,
        vision_feature_layer=values.get("mm_vision_select_layer", -2),
    )
    config.text_config.pad_token_id = tokenizer.pad_token_id
    config.dtype = config.text_config.dtype = text.dtype
    return config


def _write_processor(tokenizer: PreTrainedTokenizerBase, config: VideoLlavaConfig, folder: Path) -> None:
    """As transformers reads it: short side and centre crop of the tower's size, CLIP's mean and deviation, no flip."""
    tokenizer.save_pretrained(folder)
    make_portable(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    side, kind = config.vision_config.image_size, {"processor_class": "VideoLlavaProcessor"}
    pixels: dict[str, Any] = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
    }
    pixels |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    pixels |= {"image_mean": list(MEAN), "image_std": list(SPREAD)} | kind
    write_json(folder / PIXELS_FILE, pixels | {"image_processor_type": "VideoLlavaImageProcessor"})
    write_json(folder / "video_preprocessor_config.json", pixels | {"video_processor_type": "VideoLlavaVideoProcessor"})
    marks = {"patch_size": config.vision_config.patch_size, "num_additional_image_tokens": 1}
    write_json(folder / PROCESSOR_FILE, kind | marks | {"vision_feature_select_strategy": "default"})


LAYOUT = VideoLlava()
