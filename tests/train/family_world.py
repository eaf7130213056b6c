"""Tiny checkpoints of every family with processors to train with: real words, chat templates with ends, generation marks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from decoders import byte_level
from tiny_families import FAMILIES, PROCESSORS
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

TRAINED = [
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "video_llava",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "idefics3",
    "smolvlm",
    "paligemma",
    "vipllava",
] + ["mistral3"] * is_torchvision_available()
MARKS = {
    "internvl": "<IMG_CONTEXT>\\n",
    "gemma3": "<img>",
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "mistral3": "[IMG]",
} | dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>")
IMAGE_TOKENS = {"internvl": "<IMG_CONTEXT>", "mistral3": "[IMG]"} | dict.fromkeys(
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|image_pad|>"
)
SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<img>",
    "</img>",
    "<video>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    "<end_of_utterance>",
    "[INST]",
    "[/INST]",
    "[IMG_BREAK]",
    "[IMG_END]",
]
SETTINGS = {
    "video_llava": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "llava_next_video": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "llava_onevision": {"size": {"height": 32, "width": 32}},
    "internvl": {"size": {"height": 64, "width": 64}},
}
QWEN = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
STOCK = {
    "video_llava": "VideoLlavaVideoProcessor",
    "llava_next_video": "LlavaNextVideoVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
}
METHOD = {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}, "decoder": {"name": "fastv", "layer": 1, "keep": 0.5}}
PARTS = (
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{- 'MARK' -}}"
    "{%- elif part['type'] == 'video' -%}{{- 'FILM' -}}{%- endif -%}{%- endfor -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}"
)
CHATML = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}" + PARTS + "{{- '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}{%- else -%}" + PARTS
    + "{{- '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)  # fmt: skip
VICUNA = (
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{- 'USER: ' -}}" + PARTS + "{{- ' ' -}}{%- else -%}"
    "{{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' -}}" + PARTS + "{{- '</s>' -}}{%- endgeneration -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)  # fmt: skip


# As Gemma 3's: a beginning of sequence of its own, a system text ahead of the first question, texts stripped.
GEMMA = (
    "{{- bos_token -}}{%- set ahead = '' -%}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set ahead = messages[0]['content'][0]['text'] + '\n\n' -%}{%- set messages = messages[1:] -%}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + (ahead if loop.first else '') -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- message['content'][0]['text'] | trim + '<end_of_turn>' -}}"
    "{%- endgeneration -%}{{- '\n' -}}{%- else -%}{%- for part in message['content'] -%}"
    "{{- 'MARK' if part['type'] == 'image' else part['text'] | trim -}}{%- endfor -%}{{- '<end_of_turn>\n' -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
# As Idefics 3's: a space behind the role where a text follows, and none where an image does.
IDEFICS = (
    "{{- bos_token -}}{%- for message in messages -%}{{- message['role'].capitalize() + ':' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- ' ' + message['content'][0]['text'] + '<end_of_utterance>' -}}"
    "{%- endgeneration -%}{{- '\n' -}}{%- else -%}{{- '' if message['content'][0]['type'] == 'image' else ' ' -}}"
    "{%- for part in message['content'] -%}{{- 'MARK' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}"
    "{{- '<end_of_utterance>\n' -}}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
# As Mistral 3's: the end of the instruction is all that stands ahead of an answer.
MISTRAL = (
    "{{- bos_token -}}{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}{%- generation -%}"
    "{{- message['content'][0]['text'] + eos_token -}}{%- endgeneration -%}{%- else -%}{{- '[INST]' -}}"
    "{%- for part in message['content'] -%}{{- 'MARK' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}"
    "{{- '[/INST]' -}}{%- endif -%}{%- endfor -%}"
)
TEMPLATES = {"gemma3": GEMMA, "idefics3": IDEFICS, "smolvlm": IDEFICS, "mistral3": MISTRAL}


def template_of_family(name: str, marked: bool = False) -> str:
    """A chat template, with marks around what the model says or without them."""
    other = CHATML if name.startswith(("qwen", "internvl", "llava_onevision")) else VICUNA
    film = "<|vision_start|><video><|vision_end|>" if name.startswith("qwen") else "<video>\\n"
    text = TEMPLATES.get(name, other).replace("MARK", MARKS.get(name, "<image>\\n")).replace("FILM", film)
    return text if marked else re.sub(r"{%-? (?:end)?generation -?%}", "", text)


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Words and bytes; the tokens that the family's processor asks for."""
    image, end = IMAGE_TOKENS.get(name, "<image>"), "<|im_end|>" if "im_end" in template_of_family(name) else "</s>"
    named = {"image_token": image, "video_token": "<video>"}
    if name == "internvl":
        named = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": image,
            "video_token": "<video>",
        }
    if name == "gemma3":
        named = {"image_token": image, "boi_token": "<img>", "eoi_token": "</img>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level([*SPECIAL, image]), pad_token="<pad>", bos_token="<s>", eos_token=end, extra_special_tokens=named
    )  # fmt: skip


def write_checkpoint(folder: Path, name: str) -> Path:
    """A random model of a family with its processor's files."""
    tokenizer, config = make_tokenizer(name), FAMILIES[name]()[0]
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.max_position_embeddings = 2048
    number = tokenizer.convert_tokens_to_ids
    for key, token in (("image", IMAGE_TOKENS.get(name, "<image>")), ("video", "<video>")):
        for attribute in (f"{key}_token_id", f"{key}_token_index"):
            if hasattr(config, attribute):
                setattr(config, attribute, number(token))
    for key, token in (("boi", "<img>"), ("eoi", "</img>")):
        if hasattr(config, f"{key}_token_index"):
            setattr(config, f"{key}_token_index", number(token))
    for key in ("vision_start", "vision_end"):
        if hasattr(config, f"{key}_token_id"):
            setattr(config, f"{key}_token_id", number(f"<|{key}|>"))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # Gemma 3's projection, on whose length its norm divides
            torch.nn.init.normal_(parameter, std=0.02)
    model.generation_config = GenerationConfig(
        bos_token_id=number("<s>"), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    made, pixels, sizes, settings = PROCESSORS[name]
    tokenizer.save_pretrained(folder)
    pixels(**sizes).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": made.__name__, **settings}))
    if name != "paligemma":  # which is trained without one
        (folder / "chat_template.jinja").write_text(template_of_family(name))
    return folder


def give_videos(folder: Path, name: str) -> Path:
    """Settings for videos beside a checkpoint's processor. -> its folder"""
    file = folder / "processor_config.json"
    settings = SETTINGS.get(name, QWEN) | {"video_processor_type": STOCK.get(name, "Qwen2VLVideoProcessor")}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"video_processor": settings}))
    return folder


def write_records(folder: Path) -> Any:
    """Records with one image, two, none, in one turn and in several; pictures of different shapes. -> path of the records"""
    from PIL import Image

    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    sizes = {"red": (60, 64), "green": (90, 40), "blue": (33, 70), "white": (64, 64)}
    for number, (colour, size) in enumerate(sizes.items()):
        noise = Image.effect_noise(size, 40 + 20 * number).convert("RGB")
        Image.blend(noise, Image.new("RGB", size, colour), 0.6).save(images / f"{colour}.png")
    talks = [
        (["red"], [("<image>\nWhat colour is this", "red")]),
        (["green"], [("<image>\nWhat colour is this", "green"), ("Say the word", "green field")]),
        ([], [("Say the word", "blue"), ("Say the word", "blue word")]),
        (["blue", "white"], [("<image>\n<image>\nWhat colour is this", "blue and white")]),
    ]
    records = [
        {
            "id": f"talk-{number}",
            **({"image": [f"{name}.png" for name in names]} if names else {}),
            "conversations": [
                {"from": role, "value": text}
                for pair in rounds
                for role, text in zip(("human", "gpt"), pair, strict=True)
            ],
        }
        for number, (names, rounds) in enumerate(talks)
    ]
    (folder / "records.json").write_text(json.dumps(records))
    single = [record | {"conversations": record["conversations"][:2]} for record in records]
    (folder / "single.json").write_text(json.dumps(single))
    return folder / "records.json"


def write_videos(folder: Path) -> Path:
    """Records with a video of twelve frames, one with an image beside it, and one of text; -> path of the records"""
    from PIL import Image

    images = folder / "images"
    for number in range(12):
        (images / "film").mkdir(exist_ok=True)
        colour = (20 * number, 255 - 20 * number, 90)
        noise = Image.effect_noise((72, 40), 40).convert("RGB")
        Image.blend(noise, Image.new("RGB", (72, 40), colour), 0.6).save(images / "film" / f"{number}.png")
    talks = [
        ({"video": "film"}, [("<video>\nWhat colour is this", "red field"), ("Say the word", "red")]),
        ({}, [("Say the word", "blue")]),
        ({"video": "film"}, [("<image>\nWhat is this", "green")]),
        ({"video": "film", "image": "red.png"}, [("<image>\n<video>\nWhat colour is this", "red and green")]),
    ]
    records = [
        {
            "id": f"film-{number}",
            **media,
            "conversations": [
                {"from": role, "value": text}
                for pair in rounds
                for role, text in zip(("human", "gpt"), pair, strict=True)
            ],
        }
        for number, (media, rounds) in enumerate(talks)
    ]
    (folder / "films.json").write_text(json.dumps(records))
    return folder / "films.json"


def records_of(families: Path, name: str) -> Path:
    """The records that a family is trained on: PaliGemma takes one question each."""
    return families / ("single.json" if name == "paligemma" else "records.json")


def given(families: Path, name: str) -> dict[str, Any]:
    """A short run on one batch, with a reducer and a pruner."""
    return {
        "model": str(families / name), "projector": None, "template": "own", "reduction": METHOD, "max_steps": 4, "save_steps": 2,
        "data": str(records_of(families, name)), "images": str(families / "images"), "learning_rate": 2e-2, "projector_lr": 1e-3,
        "max_length": 1024, "group_by_modality_length": False,
    }  # fmt: skip
