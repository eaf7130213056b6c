"""A model shaped like InternVL made from a trained pocket LLaVA: its language model as it is, and a tower that learns to see as it does.

    python playground/pocket/internvl_shaped.py --model runs/pocket-lora-none/merged --images playground/pocket/data/images \
        --out runs/pocket-internvl [--steps 600] [--batch 16] [--seed 0]

No language is trained: for a few minutes on a CPU a small InternViT with pixel shuffle and projector is fitted to the LLaVA's
visual tokens, each of its 36 to the mean of the 4 patches that it stands for. It is there to try commands on a model of that
shape whose answers mean something; it is no release of anybody's.
"""

# ruff: noqa: T201  (an entry point talks to people)

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from llava_prumerge.data.images import read_image
from llava_prumerge.model.loading import load_model

CONTEXT, OPEN, CLOSE = "<IMG_CONTEXT>", "<img>", "</img>"
NAMES = {"context_image_token": CONTEXT, "start_image_token": OPEN, "end_image_token": CLOSE, "video_token": "<video>"}
"""Under which InternVL's processor asks its tokenizer for them."""
FOLD = 2
SUFFIXES = (".png", ".jpg", ".jpeg")


def shaped_config(llava: Any, image_token: int, rows: int) -> InternVLConfig:
    """InternVL's configuration with the tower's and the language model's sizes of a LLaVA's."""
    vision = llava.vision_config
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return InternVLConfig(
        vision_config={key: getattr(vision, key) for key in same}
        | dict(image_size=[vision.image_size] * 2, patch_size=[vision.patch_size] * 2, attention_bias=True),
        text_config=llava.text_config.to_dict() | {"vocab_size": rows},
        image_token_id=image_token,
        image_seq_length=(vision.image_size // vision.patch_size // FOLD) ** 2,
        tie_word_embeddings=False,
    )


def named_tokens(tokenizer: Any) -> None:
    """The tokens that InternVL's processor writes around and for an image, at the end of the vocabulary."""
    tokenizer.add_tokens([CONTEXT, OPEN, CLOSE], special_tokens=True)
    tokenizer.chat_template = None  # prompts are then those that the language model was trained with


def student_of(llava: Any, tokenizer: Any) -> InternVLForConditionalGeneration:
    """The language model taken over, rows for the new tokens added; tower and projector at random."""
    named_tokens(tokenizer)
    rows = max(llava.config.text_config.vocab_size, len(tokenizer))
    llava.resize_token_embeddings(rows)
    config = shaped_config(llava.config, tokenizer.convert_tokens_to_ids(CONTEXT), rows)
    made = AutoModelForImageTextToText.from_config(config)
    made.model.language_model.load_state_dict(llava.model.language_model.state_dict())
    made.lm_head.load_state_dict(llava.lm_head.state_dict())
    made.generation_config = llava.generation_config
    return made


@torch.no_grad()
def seen_by(llava: Any, pixels: Tensor) -> Tensor:
    """The mean of each 2 x 2 patches' visual tokens. [N, 3, h, w] -> [N, U, D]"""
    tokens = torch.stack(list(llava.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output))
    side = int(tokens.shape[1] ** 0.5)
    return tokens.view(len(tokens), side // FOLD, FOLD, side // FOLD, FOLD, -1).mean(dim=(2, 4)).flatten(1, 2)


def fit(student: InternVLForConditionalGeneration, llava: Any, pixels: Tensor, steps: int, batch: int) -> list[float]:
    """Fit tower and projector. -> the mean squared error over the targets' variance, of each step"""
    inner = student.model
    trained = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    errors = []
    for _ in tqdm(range(steps), desc="fit", unit="step"):
        given = pixels[torch.randint(len(pixels), (batch,))]
        target = seen_by(llava, given)
        error = (
            inner.get_image_features(given, return_dict=True).pooler_output - target
        ).square().mean() / target.var()
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        errors.append(error.item())
    return errors


def write(
    student: InternVLForConditionalGeneration, tokenizer: Any, pixels: GotOcr2ImageProcessorPil, out: Path
) -> None:
    """The checkpoint with its processor's files."""
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)
    pixels.save_pretrained(out)
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": student.config.image_seq_length}
    file = out / "tokenizer_config.json"
    named = json.loads(file.read_text(encoding="utf-8")) | NAMES
    file.write_text(json.dumps(named, indent=2), encoding="utf-8")
    (out / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def main() -> None:
    """Make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "images", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=int, default=800, help="images to fit on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    llava, processor = load_model(given.model, {}, device="cpu")
    side = llava.config.vision_config.image_size
    norms = {key: getattr(processor.image_processor, key) for key in ("image_mean", "image_std")}
    prepare = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=False, max_patches=1, **norms
    )
    files = sorted(path for path in given.images.rglob("*") if path.suffix in SUFFIXES)[: given.limit]
    pixels = prepare([read_image(file) for file in files], return_tensors="pt")["pixel_values"]
    student = student_of(llava, processor.tokenizer)
    errors = fit(student, llava, pixels, given.steps, given.batch)
    student.eval()
    write(student, processor.tokenizer, prepare, given.out)
    last = errors[-max(1, given.steps // 10) :]
    print(
        f"{given.out}: {len(files)} images, {given.steps} steps, error {sum(last) / len(last):.3f} of the tokens' variance"
    )


if __name__ == "__main__":
    main()
