"""A world in which every stage trains in seconds: random backbones as folders, images, and records in LLaVA's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

COLOURS = ("red", "green", "blue", "white", "black")
WORDS = [
    "A",
    "chat",
    "between",
    "a",
    "curious",
    "user",
    "and",
    "an",
    "artificial",
    "intelligence",
    "assistant",
    "The",
    "gives",
    "helpful",
    "detailed",
    "polite",
    "answers",
    "to",
    "the",
    "questions",
    "USER",
    "ASSISTANT",
    "What",
    "colour",
    "is",
    "this",
    "Say",
    "word",
    "red",
    "green",
    "blue",
    "white",
    "black",
    "picture",
    "shows",
    "field",
]


@dataclass(frozen=True)
class World:
    """Paths of the tiny world.

    Attributes:
        folder: all of it.
        prumerge_plus: a method file with an adaptive, ragged reduction.
    """

    folder: Path

    def recipe(self, stage: str, output: Path, **changes: object) -> list[str]:
        """Command-line tokens of a short run: two samples per pass, two passes per step, six steps."""
        values: dict[str, object] = {
            "stage": stage,
            "language_model": str(self.folder / "lm"),
            "vision_tower": str(self.folder / "clip"),
            "data": str(self.folder / "records.json"),
            "images": str(self.folder / "images"),
            "template": "plain" if stage == "projector" else "vicuna_v1",
            "max_length": 256,
            "workers": 0,
            "group_by_modality_length": stage != "projector",
            "global_batch": 4,
            "per_device_batch": 2,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "projector_lr": None if stage == "projector" else 5e-4,
            "lora_rank": 4,
            "lora_alpha": 8,
            "precision": "fp32",
            "activation_checkpointing": False,
            "save_steps": 3,
            "save_total_limit": None,
            "report_to": [],
            "output_dir": str(output),
        } | changes
        if stage == "projector":
            # Plain captions need an image; only stage 2's mix has samples without.
            values["data"] = changes.get("data", str(self.folder / "captions.json"))
        else:
            values.setdefault("projector", str(self.projector()))
        output.parent.mkdir(parents=True, exist_ok=True)
        recipe = output.parent / f"{output.name}.yaml"
        recipe.write_text(yaml.safe_dump(values))
        return [str(recipe)]

    @property
    def prumerge_plus(self) -> str:
        return str(self.folder / "prumerge_plus.yaml")

    def projector(self) -> Path:
        """A random projector file, as stage 1 would have left it."""
        from safetensors.torch import save_file

        from llava_prumerge.model.adapters import Base

        file = self.folder / "mm_projector.safetensors"
        if not file.exists():
            model, _ = Base(None, str(self.folder / "lm"), str(self.folder / "clip"), seed=5).build()
            weights = model.model.multi_modal_projector.state_dict()
            save_file({f"multi_modal_projector.{name}": tensor for name, tensor in weights.items()}, file)
        return file


def make_tokenizer(folder: Path) -> int:
    """Llama's conventions, one token per word of this world. -> size of the vocabulary"""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ("<unk>", "<s>", "</s>")
    pieces = [(name, 0.0) for name in specials] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(WORDS)]
    pieces += [(letter, -9.0) for letter in ["▁", *map(chr, range(33, 127))]]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_backbones(folder: Path) -> None:
    """A Llama and a CLIP with random weights whose attention is sharp enough for outliers to exist."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vocabulary = make_tokenizer(folder / "lm")
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, **sizes)).save_pretrained(folder / "lm")
    clip = CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=7, projection_dim=16, **sizes))
    for block in clip.encoder.layers:
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
            projection.weight.data.mul_(40)
    clip.save_pretrained(folder / "clip")
    side = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side).save_pretrained(folder / "clip")


def make_records(folder: Path) -> None:
    """24 records: noisy pictures of one colour, every third one without a picture; answers of very different length."""
    from PIL import Image

    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    records = []
    for index in range(24):
        colour = COLOURS[index % len(COLOURS)]
        record: dict = {"id": f"sample-{index}"}
        question, answer = "What colour is this", " ".join([colour] * (1 + index % 7))
        if index % 3:
            record["image"] = f"{index}.png"
            pixels = random.integers(0, 120, (20 + index, 30, 3), dtype=np.uint8) + np.uint8(
                20 * (index % len(COLOURS))
            )
            Image.fromarray(pixels).save(folder / "images" / record["image"])
            question = f"<image>\n{question}"
        turns = [("human", question), ("gpt", answer)] + [("human", "Say the word"), ("gpt", colour)] * (index % 2)
        record["conversations"] = [{"from": role, "value": text} for role, text in turns]
        records.append(record)
    (folder / "records.json").write_text(json.dumps(records))
    captions = [{**record, "conversations": record["conversations"][:2]} for record in records if "image" in record]
    (folder / "captions.json").write_text(json.dumps(captions))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    make_backbones(folder)
    make_records(folder)
    method = {"vision": {"name": "prumerge_plus", "iqr_factor": 0.2}}
    (folder / "prumerge_plus.yaml").write_text(yaml.safe_dump(method))
    return World(folder)


@pytest.fixture(scope="session")
def logits_of(world: World):
    """A function: model and processor -> logits of two samples with images of different colours."""
    import torch

    from llava_prumerge.data.collator import Collator
    from llava_prumerge.data.dataset import LlavaDataset
    from llava_prumerge.data.images import ImagePreprocessor

    def compute(model, processor):
        dataset = LlavaDataset(
            world.folder / "records.json",
            world.folder / "images",
            processor.tokenizer,
            ImagePreprocessor(processor.image_processor, aspect="pad"),
            "vicuna_v1",
            image_token_id=model.config.image_token_id,
            image_tokens=model.config.image_seq_length,
        )
        batch = Collator(processor.tokenizer.pad_token_id)([dataset[1], dataset[2]])
        with torch.no_grad():
            return model.eval()(**{name: value for name, value in batch.items() if name != "ids"}).logits

    return compute


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny checkpoint of every family that is trained, and records for all of them."""
    from tiny_families import have_num2words
    from train.family_world import TRAINED, write_checkpoint, write_records

    folder = tmp_path_factory.mktemp("families")
    write_records(folder)
    with pytest.MonkeyPatch.context() as patch:
        have_num2words(patch)
        for name in TRAINED:
            write_checkpoint(folder / name, name)
        yield folder
