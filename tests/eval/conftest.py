"""Where the real benchmark files lie, and a small world of benchmark files in their official formats."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SUFFIX = "Answer the question using a single word or phrase."
REDUCTION = {"vision": {"name": "prumerge", "iqr_factor": 0.2}}
EVALDATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "evaldata"


@pytest.fixture
def real() -> Callable[[str], Path]:
    """The path of a real benchmark file; the test skips where the folder is absent."""

    def locate(name: str) -> Path:
        if not EVALDATA.is_dir():
            pytest.skip("../shared/evaldata with the real benchmark files is absent")
        return EVALDATA / name

    return locate


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes text, JSON or (from a list, to a name in .jsonl) JSON lines below the test's folder."""

    def save(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, "utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(record) + "\n" for record in content), "utf-8")
        else:
            path.write_text(json.dumps(content), "utf-8")
        return path

    return save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with PruMerge, its tokenizer and its image processor."""
    from tiny_llava import tiny_model
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

    from llava_prumerge.model.processors import make_processor

    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model(REDUCTION)
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *[
            "Is",
            "there",
            "a",
            "red",
            "cat",
            "dog",
            "cow",
            "?",
            "Yes",
            "No",
            "A",
            "B",
            ".",
            "USER",
            ":",
            "ASSISTANT",
            "image",
            "the",
            "in",
        ],
    ]
    words += [f"w{number}" for number in range(len(words), 99)]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **tokens)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    model.save_pretrained(folder)
    make_processor(tokenizer, image_processor, model.config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE, ScienceQA (with and without image) and MMBench in LLaVA's layout, a few questions each."""
    root = tmp_path_factory.mktemp("eval")

    def write(name: str, content: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, "utf-8")

    labels = [
        {"question_id": n, "image": f"{n}.png", "text": f"Is there a {'red ' * n}{thing}?", "label": label}
        for n in range(3)
        for thing, label in (("cat", "yes"), ("dog", "no"))
    ]
    for number, label in enumerate(labels):
        label["question_id"] = number
    write("pope/coco/coco_pope_random.json", "".join(json.dumps(label) + "\n" for label in labels))
    questions = [label | {"text": f"{label['text']}\n{SUFFIX}", "category": "random"} for label in labels]
    write("pope/llava_pope_test.jsonl", "".join(json.dumps(question) + "\n" for question in questions))
    for number in range(3):
        save_image(root / f"pope/val2014/{number}.png", number)
        save_image(root / f"scienceqa/images/test/{number}/image.png", number)
    problems = {
        str(n): {"choices": ["cat", "dog"], "answer": 0, "image": "image.png" if n < 3 else None} for n in range(5)
    }
    write("scienceqa/problems.json", json.dumps(problems))
    write("scienceqa/pid_splits.json", json.dumps({"test": list(problems)}))
    asked = [
        {
            "id": pid,
            "conversations": [
                {"value": ("<image>\n" if problem["image"] else "") + f"Is there a {'cat ' * int(pid)}?"}
            ],
        }
        | ({"image": f"{pid}/image.png"} if problem["image"] else {})
        for pid, problem in problems.items()
    ]
    write("scienceqa/llava_test_CQM-A.json", json.dumps(asked))
    picture = base64.b64encode((root / "pope/val2014/1.png").read_bytes()).decode()
    rows = [f"{n}\tIs there?\t\tcat\tdog\t\t\tA\t{picture}\tdev" for n in (0, 1_000_000)]
    write(
        "mmbench/mmbench_dev_20230712.tsv",
        "\n".join(["index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\tsplit", *rows]) + "\n",
    )
    return root
