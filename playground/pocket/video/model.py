"""A pocket Video-LLaVA from the pocket backbones: `python playground/pocket/video/model.py [--projector FILE] [--out FOLDER]`.

The pocket CLIP twice, once with attention over time that is still at zero; stage 1's projector; the pocket language model. What stage 2 for
videos begins with (configs/train/pocket/video.yaml).
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parents[2])  # this folder itself must not shadow installed packages

import playground.pocket  # noqa: E402, F401  before transformers: see its first lines
from llava_prumerge.ground.command import Parser, command  # noqa: E402
from llava_prumerge.ground.errors import InputError  # noqa: E402
from playground.pocket.video.clips import FRAMES  # noqa: E402

BACKBONES = HERE.parent / "backbones"
PROJECTOR = Path("runs/pocket-pretrain-none/mm_projector.safetensors")
OUT = Path("runs/pocket-video/model")
VIDEO_TOKEN = "<video>"


def configuration(tokenizer: Any, tower: Any, language: Any) -> Any:
    """Of the whole, from those of its parts."""
    from transformers import VideoLlavaConfig

    from llava_prumerge.ground.public import without_private
    from llava_prumerge.model.attach import own_config_class
    from llava_prumerge.model.towers.temporal_clip import TemporalClipConfig

    vision = {
        key: value
        for key, value in without_private(tower.to_dict()).items()
        if key not in ("model_type", "architectures")
    }
    patches = (tower.image_size // tower.patch_size) ** 2
    return own_config_class(VideoLlavaConfig)(
        vision_config=TemporalClipConfig(**vision, num_frames=FRAMES).to_dict(),
        text_config=without_private(language.to_dict()),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        image_seq_length=patches,
        video_seq_length=FRAMES * (patches + 1),  # each frame brings its class token
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def put_together(projector: Path) -> tuple[Any, Any]:
    """The model and its tokenizer.

    Raises:
        InputError: the projector is missing, or a part does not fit.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, CLIPVisionModel

    from llava_prumerge.model.attach import own_class, stock_class_of
    from llava_prumerge.text.tokenizers import load_tokenizer

    if not projector.is_file():
        raise InputError(f"{projector}: no such file; RECIPE=pocket METHOD=none bash scripts/pretrain.sh writes it")
    tokenizer = load_tokenizer(BACKBONES / "lm")
    tokenizer.add_tokens([VIDEO_TOKEN], special_tokens=True)
    language = AutoModelForCausalLM.from_pretrained(BACKBONES / "lm", dtype=torch.float32)
    tower = CLIPVisionModel.from_pretrained(BACKBONES / "clip", dtype=torch.float32)
    config = configuration(tokenizer, tower.config, language.config)
    torch.manual_seed(0)
    model = own_class(stock_class_of(config))(config)
    parts = {
        "image_tower": (model.model.image_tower, tower.state_dict()),
        "video_tower": (model.model.video_tower, tower.state_dict()),
        "language model": (model.model.language_model, language.model.state_dict()),
        "head": (model.lm_head, language.lm_head.state_dict()),
        "projector": (
            model.model.multi_modal_projector,
            {key.removeprefix("multi_modal_projector."): value for key, value in load_file(projector).items()},
        ),
    }
    for name, (module, weights) in parts.items():
        told = module.load_state_dict(weights, strict=False)
        missing = [key for key in told.missing_keys if "temporal_" not in key]
        if missing or told.unexpected_keys:
            raise InputError(f"the {name} does not fit: {(missing + told.unexpected_keys)[:5]}")
    model.generation_config = language.generation_config
    return model.eval(), tokenizer


def write_processor(tokenizer: Any, folder: Path, side: int, patch: int) -> None:
    """Files of a Video-LLaVA's processor: images and frames as CLIP takes them, its authors' prompt."""
    from llava_prumerge.model.checkpoints.layouts.video_llava import CHAT
    from llava_prumerge.model.parts import load_image_processor

    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    pixels = load_image_processor(BACKBONES / "clip")
    pixels.save_pretrained(folder)
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "do_center_crop": True}
    settings = {
        "processor_class": "VideoLlavaProcessor",
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
        "video_token": VIDEO_TOKEN,
        "video_processor": {
            "video_processor_type": "VideoLlavaVideoProcessor",
            "image_mean": list(pixels.image_mean),
            "image_std": list(pixels.image_std),
            **square,
        },
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


@command()
def main(words: list[str]) -> int:
    """Put it together."""
    parser = Parser(prog="python playground/pocket/video/model.py", description=__doc__)
    parser.add_argument("--projector", type=Path, default=PROJECTOR)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(words)
    model, tokenizer = put_together(given.projector)
    model.save_pretrained(given.out)
    vision = model.config.vision_config
    write_processor(tokenizer, given.out, vision.image_size, vision.patch_size)
    print(f"{given.out}: {model.config.video_seq_length} tokens of a video of {FRAMES} frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
