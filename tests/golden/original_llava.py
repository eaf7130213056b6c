"""The original LLaVA and PruMerge against this project, step by step: ids, labels, pixels, features, tokens, logits, answers.

    python tests/golden/original_llava.py [--images N] [--shared FOLDER]

The other side is `llava_reference.py` with sentencepiece, Pillow and transformers' stock CLIP and Llama. Texts and images are those
of FOLDER (`../shared`: Llama's tokenizer, 256 samples of LLaVA's first stage), which is not part of the project; without it ids are
left out and images are drawn. The weights are the pocket backbones' with a projector drawn at random. Prints the table of
docs/parity.md; the exit status is 0 if every row is equal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import llava_reference as llava  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from llava_prumerge.data.conversation import encode, encode_training, prompt  # noqa: E402
from llava_prumerge.data.images import ImagePreprocessor, read_image  # noqa: E402
from llava_prumerge.model.assembling import assemble  # noqa: E402
from llava_prumerge.model.attach import attach  # noqa: E402
from llava_prumerge.text.tokenizers import load_tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BACKBONES, SHARED = ROOT / "playground" / "pocket" / "backbones", ROOT.parent / "shared"
MARK = 32000  # the image token of Llama's vocabulary here
TOLERANCE, PIXEL_TOLERANCE = 1e-4, 1e-5  # of the largest value
STEPS = 12
METHODS: dict[str, dict[str, Any]] = {
    "LLaVA": {},
    "PruMerge": {"vision": {"name": "prumerge"}},
    "PruMerge+": {"vision": {"name": "prumerge_plus"}},
}


@dataclass
class Row:
    """One line of the table."""

    what: str
    against: str
    compared: int = 0
    equal: int = 0
    largest: float | None = None
    note: str = ""

    def same(self, left: object, right: object) -> None:
        """Count an exact comparison."""
        self.compared, self.equal = self.compared + 1, self.equal + (left == right)

    def near(self, left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> None:
        """Count a comparison of values, by their difference as a part of the largest."""
        apart = float("inf")
        if left.shape == right.shape:
            apart = ((left - right).abs().max() / right.abs().max().clamp(min=1e-12)).item()
        self.largest = max(self.largest or 0.0, apart)
        self.compared, self.equal = self.compared + 1, self.equal + (apart <= tolerance)

    def __str__(self) -> str:
        largest = "" if self.largest is None else f"{self.largest:.1e}"
        return f"| {self.what} | {self.against} | {self.equal} of {self.compared} | {largest} | {self.note} |"


def texts(shared: Path) -> Iterator[Row]:
    """Ids and labels with Llama's own tokenizer."""
    model = shared / "llama_tokenizer" / "tokenizer.model"
    reference = json.loads((model.parent / "reference.json").read_text(encoding="utf-8"))
    records = json.loads((shared / "llava_pretrain_sample" / "blip_laion_cc_sbu_256.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "pad_token": "<unk>"}  # as Vicuna's
        (Path(folder) / "tokenizer.model").write_bytes(model.read_bytes())
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        ours = load_tokenizer(folder)
    theirs = llava.Llama(model)
    bare = lambda ids: [llava.IMAGE if number == MARK else number for number in ids]  # noqa: E731
    row = Row("ids of texts", "sentencepiece, as recorded")
    for item in reference["plain"]:
        row.same(ours(item["text"], add_special_tokens=False)["input_ids"], item["ids"])
    yield row
    row = Row("ids of prompts with an image", "sentencepiece composed by LLaVA's code, as recorded")
    for item in reference["prompts"]:
        row.same(bare(encode(ours, item["prompt"], MARK, 1)), item["ids"])
    yield row
    first, later = (
        Row("ids and labels, first stage", "`preprocess_plain`"),
        Row("ids and labels, three turns of vicuna_v1", "`preprocess_v1`"),
    )
    sayings = [[turn["value"] for turn in record["conversations"]] for record in records]
    for at, (record, said) in enumerate(zip(records, sayings, strict=True)):
        made = encode_training(ours, record, "plain", MARK, 1)
        first.same((bare(made["input_ids"]), [*made["labels"]]), llava.caption(theirs, said))
        turns = [part for other in (at, at + 1, at + 2) for part in sayings[other % len(records)]]
        turns = [turns[0], *(part.replace("<image>", "").strip() for part in turns[1:])]
        speakers = ("human", "gpt") * 3
        talk = [{"from": who, "value": what} for who, what in zip(speakers, turns, strict=True)]
        made = encode_training(ours, {"image": "x.jpg", "conversations": talk}, "vicuna_v1", MARK, 1)
        later.same((bare(made["input_ids"]), [*made["labels"]]), llava.conversation(theirs, turns))
    yield first
    yield later


def pictures(shared: Path, number: int, scratch: Path) -> list[Path]:
    """So many real images, evenly over the samples; drawn ones where there are none."""
    found = sorted((shared / "llava_pretrain_sample" / "images").rglob("*.jpg"))
    if found:
        return [found[at * len(found) // number] for at in range(number)]
    torch.manual_seed(0)
    made = []
    for at in range(number):
        shape = (40 + 31 * at, 60 + 17 * (at % 3))
        coarse = (torch.rand(6, 5, 3) * 255).byte().numpy()
        made.append(scratch / f"{at}.png")
        Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC).save(made[-1])
    return made


def models(paths: list[Path]) -> Iterator[Row]:
    """Pixels, features, merged tokens, logits and greedy answers of the pocket backbones."""
    torch.manual_seed(0)
    model, processor = assemble(BACKBONES / "lm", BACKBONES / "clip")
    model.eval()
    tower, language = _stock()
    side, config = processor.image_processor.crop_size["height"], model.config
    padded, square = Row("pixels, padded to a square", "Pillow"), Row("pixels, cropped (first stage)", "Pillow")
    seen = Row("features", "stock CLIP, `hidden_states[-2]`")
    rows = {
        name: [
            Row(
                f"{name}: projected tokens", "stock projector" if not block else "the release's loops, stock projector"
            ),
            Row(f"{name}: logits", "stock Llama on spliced embeddings"),
            Row(f"{name}: greedy answers, to {STEPS} tokens", "the same"),
        ]
        for name, block in METHODS.items()
    }
    ids = encode(processor.tokenizer, prompt("vicuna_v1", "What is in the picture?"), config.image_token_id, 1)
    short = [llava.IMAGE if number == config.image_token_id else number for number in ids]
    places = [
        n for number in ids for n in [number] * (config.image_seq_length if number == config.image_token_id else 1)
    ]
    failed: dict[str, int] = {}
    for path in paths:
        image = read_image(path)
        theirs = llava.pixels(path, side, pad=True)
        padded.near(ImagePreprocessor(processor.image_processor)([image])[0], theirs, PIXEL_TOLERANCE)
        cropped = ImagePreprocessor(processor.image_processor, aspect="square")([image])[0]
        square.near(cropped, llava.pixels(path, side, pad=False), PIXEL_TOLERANCE)
        patches, query, keys = llava.features(tower, theirs[None])
        seen.near(model.model.encode_images(theirs[None]).features, patches)
        for name, block in METHODS.items():
            tokens, logits, answers = rows[name]
            try:
                kept = patches[0] if not block else llava.prumerge(patches[0], query[0], keys[0], name == "PruMerge+")
            except (ArithmeticError, ValueError):
                failed[name] = failed.get(name, 0) + 1
                tokens.note = f"the release itself fails on {failed[name]} more"
                continue
            attach(model, block)
            image_embeds = model.model.multi_modal_projector(kept)
            embeds = llava.spliced(language.get_input_embeddings(), short, image_embeds)
            given = {"input_ids": torch.tensor([places]), "pixel_values": theirs[None]}
            said = model.generate(**given, max_new_tokens=STEPS, do_sample=False)
            reduced = model.model.get_image_features(theirs[None])
            reduced = reduced if isinstance(reduced, Tensor) else reduced.pooler_output
            reduced = torch.cat(list(reduced)) if isinstance(reduced, list | tuple) else reduced.flatten(0, -2)
            tokens.near(reduced[reduced.abs().sum(-1) > 0][-len(image_embeds) :], image_embeds)
            logits.near(model(**given).logits, language(inputs_embeds=embeds).logits)
            answers.same(said[0, len(places) :].tolist(), llava.greedy(language, embeds, STEPS))
    yield from (padded, square, seen, *(row for group in rows.values() for row in group))


def _stock() -> tuple[Any, Any]:
    from transformers import CLIPVisionModel, LlamaForCausalLM

    language = LlamaForCausalLM.from_pretrained(BACKBONES / "lm", dtype=torch.float32)
    return CLIPVisionModel.from_pretrained(BACKBONES / "clip").eval(), language.eval()


def compare(shared: Path, images: int) -> list[Row]:
    """Every row of the table."""
    rows = list(texts(shared)) if (shared / "llama_tokenizer").is_dir() else []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        return rows + list(models(pictures(shared, images, Path(scratch))))


def main() -> int:
    """The command line. -> exit status"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="images to compare (48)")
    parser.add_argument("--shared", type=Path, default=SHARED)
    given = parser.parse_args()
    rows = compare(given.shared, given.images)
    print("| what | against | equal | largest difference | |\n|---|---|---|---|---|")
    print("\n".join(map(str, rows)))
    return 0 if all(row.equal == row.compared > 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
