"""Makes the pocket world from seeds: `python playground/pocket/build.py data|clip|lm [key=value ...]`.

data  the images, the two training sets in LLaVA's JSON format and the six benchmarks in their official formats
clip  trains the vision tower, exports it to backbones/clip and measures its gate
lm    trains the language model, exports it to backbones/lm and measures its gate

Killed trainings resume from playground/pocket/work when the same command is given again; `fresh=true` starts over. The other
values are fields of `ClipSettings` and `LanguageSettings`, or keywords of `records.build` for data.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from llava_prumerge.ground.command import Parser, command, pairs
from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.naming import not_known

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a shared machine
sys.path[0] = str(ROOT)  # this folder itself must not shadow installed packages

import playground.pocket  # noqa: E402, F401  before transformers: see its first lines

T = TypeVar("T")
logger = logging.getLogger("pocket.build")


def parse_values(words: list[str]) -> dict[str, Any]:
    """Reads key=value words; values are JSON where they can be, else text."""
    made: dict[str, Any] = {}
    for key, value in pairs(words).items():
        try:
            made[key] = json.loads(value)
        except json.JSONDecodeError:
            made[key] = value
    return made


def check_values(values: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Refuses unknown keys, and values of another type than their key has.

    Args:
        values: as read.
        kinds: the type of each key that is known: int, float, bool, str or Path.

    Raises:
        InputError: the message names the key and what it takes.
    """
    for key, value in values.items():
        if key not in kinds:
            raise InputError(not_known("setting", key, kinds))
        taken = {int: (int,), float: (int, float), Path: (str,)}.get(kinds[key], (kinds[key],))
        if not isinstance(value, taken) or (isinstance(value, bool) and kinds[key] is not bool):
            raise InputError(f"{key}={value!r} is not of type {kinds[key].__name__}")
        if kinds[key] in (int, float) and not isinstance(value, bool) and not 0 <= value < float("inf"):
            raise InputError(f"{key}={value!r} is not a number of at least 0")


def settings_of(kind: type[T], values: dict[str, Any]) -> T:
    """A settings dataclass from key=value pairs."""
    check_values(values, get_type_hints(kind))
    return kind(**values)


def write_metrics(out: Path, values: dict[str, Any]) -> None:
    """Writes the gate's numbers with what they were measured on."""
    import torch
    import transformers

    command = " ".join(["python", "playground/pocket/build.py", *sys.argv[1:]])
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(out / "metrics.json", {"command": command, "versions": versions, **values})
    logger.info("%s", json.dumps(values))


def build_data(out: Path, values: dict[str, Any]) -> None:
    """Writes the training sets and the benchmarks; `seed` is for both, every other value for the one that knows it."""
    from playground.pocket import benchmarks, records

    known = {part: get_type_hints(part) for part in (records.build, benchmarks.build)}
    for kinds in known.values():
        kinds.pop("out"), kinds.pop("return"), kinds.pop("world")
    check_values(values, dict(item for kinds in known.values() for item in kinds.items()))
    for part, names in known.items():
        part(out, **{key: value for key, value in values.items() if key in names})


def build_clip(work: Path, values: dict[str, Any]) -> None:
    """Trains, exports and measures the vision tower."""
    from playground.pocket.torchvision_mend import declare_operators

    declare_operators()  # before transformers, which imports torchvision where it is there
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from llava_prumerge.model.open_clip import build_tower, convert_open_clip, save_tower
    from playground.pocket import probe, rescale, train_clip
    from playground.pocket import tokenizer as pocket_tokenizer
    from playground.pocket.scenes import SIZE

    settings = settings_of(train_clip.ClipSettings, values)
    tokenizer, out = pocket_tokenizer.build(), HERE / "backbones" / "clip"
    checkpoint = train_clip.train(settings, tokenizer, work / "clip")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    shape = json.loads(train_clip.CONFIG.read_text())
    config, converted = convert_open_clip(weights, shape["vision_cfg"], shape["quick_gelu"], shape["embed_dim"])
    tower = rescale.to_unit_features(build_tower(config, converted))
    save_tower(tower, out)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(out)
    shutil.copy(work / "clip" / "train_log.jsonl", out / "train_log.jsonl")
    model = train_clip.build_model(settings.seed)
    model.load_state_dict(weights)
    found = train_clip.retrieval(model, settings, tokenizer, shape["text_cfg"]["context_length"], n=8)
    gate = {**found, **probe.measure(tower)}
    parameters = sum(p.numel() for p in tower.parameters())
    write_metrics(out, {"gate": gate, "parameters": parameters, "settings": asdict(settings)})


def build_lm(work: Path, values: dict[str, Any]) -> None:
    """Trains, exports and measures the language model."""
    from llava_prumerge.text.tokenizers import save_tokenizer
    from playground.pocket import train_lm

    settings = settings_of(train_lm.LanguageSettings, values)
    model, tokenizer = train_lm.train(settings, work / "lm")
    out = HERE / "backbones" / "lm"
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    shutil.copy(work / "lm" / "train_log.jsonl", out / "train_log.jsonl")
    gate = train_lm.gate(model, tokenizer, "test", per_kind=400)
    parameters = sum(p.numel() for p in model.parameters())
    rounded = {kind: round(score, 4) for kind, score in gate.items()}
    write_metrics(
        out, {"gate": rounded, "worst": min(rounded.values()), "parameters": parameters, "settings": asdict(settings)}
    )


@command()
def main(words: list[str]) -> None:
    """The command line."""
    parser = Parser("playground.pocket.build", __doc__, settings=None)
    parser.add_argument("part", choices=("data", "clip", "lm"))
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    values = parse_values(arguments.settings)
    if arguments.part == "data":
        build_data(Path(str(values.pop("out", HERE / "data"))), values)
        return
    work = HERE / "work"
    if values.pop("fresh", False):
        shutil.rmtree(work / arguments.part, ignore_errors=True)
    {"clip": build_clip, "lm": build_lm}[arguments.part](work, values)


if __name__ == "__main__":
    sys.exit(main())
