"""Conversations: later answers are those of asking everything at once, and the terminal does what its lines say."""

from __future__ import annotations

import importlib.util
import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, PROCESSORS, have_num2words, write_family

from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import prepare
from llava_prumerge.inference.chat import Terminal, main
from llava_prumerge.inference.talking import Conversation
from llava_prumerge.model.loading import load_model

QUESTIONS = ["w5 w6", "w7", "w8 w9"]
METHOD = {"vision": {"name": "uniform", "budget": 3}, "decoder": {"name": "fastv", "layer": 2, "keep_ratio": 0.5}}


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 52, 3), dtype=np.uint8))


IMAGES = [[photo(1)], [photo(2), photo(3)], []]


def at_once(model: Any, processor: Any, answers: list[str]) -> tuple[list[int], str]:
    """Ids and last answer of the whole conversation, put together from transformers' own parts alone."""
    messages: list[dict[str, Any]] = []
    for number, (question, images) in enumerate(zip(QUESTIONS, IMAGES, strict=True)):
        parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts})
        if number < len(answers):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[number]}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=[[image for images in IMAGES for image in images]], return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    ids = inputs["input_ids"][0].tolist()
    return ids, processor.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / name, name) for name in FAMILIES if name in PROCESSORS}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("llava", "video_llava")])
def test_a_later_answer_is_that_of_asking_everything_at_once(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in PROCESSORS:
        pytest.skip(f"the processor of {name} needs torchvision")
    if name == "smolvlm":
        have_num2words(monkeypatch)
    model, processor = load_model(folders[name], METHOD, device="cpu")
    conversation, answers = Conversation(model, processor, max_new_tokens=6), []
    for question, images in zip(QUESTIONS, IMAGES, strict=True):
        for image in images:
            conversation.show(image)
        pieces: list[str] = []
        answer = conversation.ask(question, pieces.append)
        assert "".join(pieces).strip() == answer.text
        answers.append(answer.text)
    assert len(answer.images) == 3, "the images of all turns"
    assert all(image.kept < image.full for image in answer.images)
    assert sum(image.layers[-1] for image in answer.images) < answer.kept, "both methods acted"
    earlier = list(zip(QUESTIONS, IMAGES, answers[:2], strict=False))
    ids = prepare(model, processor, QUESTIONS[2], IMAGES[2], earlier=earlier)[0]["input_ids"]
    assert (ids[0].tolist(), answers[2]) == at_once(model, processor, answers[:2])
    conversation.begin_anew()
    if name == "paligemma":
        with pytest.raises(InputError, match="no question without an image"):
            conversation.ask(QUESTIONS[-1])
        return
    alone = conversation.ask(QUESTIONS[-1])
    assert alone.images == () and alone.prompt_tokens < answer.prompt_tokens


def test_llavas_turns_stand_in_its_template_as_in_training(folders: dict[str, Path]) -> None:
    from llava_prumerge.data.conversation import encode_training

    model, processor = load_model(folders["llava"], {}, device="cpu")
    earlier = [(q, images, a) for q, images, a in zip(QUESTIONS, IMAGES, ["w20 w21", "w22"], strict=False)]
    ids = prepare(model, processor, QUESTIONS[-1], [], earlier=earlier)[0]
    turns = []
    for number, (question, images) in enumerate(zip(QUESTIONS, IMAGES, strict=True)):
        turns.append({"from": "human", "value": "<image>\n" * len(images) + question})
        turns.append({"from": "gpt", "value": ["w20 w21", "w22", "w23"][number]})
    record = {"image": ["a", "b", "c"], "conversations": turns}
    trained = encode_training(processor.tokenizer, record, "vicuna_v1", model.config.image_token_id, 16)
    length = ids["input_ids"].shape[1]
    assert ids["input_ids"][0].tolist() == trained["input_ids"][:length] and ids["pixel_values"].shape[0] == 3
    assert (ids["input_ids"] == model.config.image_token_id).sum() == 48
    assert all(label == -100 for label in trained["labels"][length - 1 : length]) and trained["labels"][length] != -100


@pytest.fixture
def place(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pictures, one with a space in its name."""
    monkeypatch.chdir(tmp_path)
    photo(1).save("a.png")
    photo(2).save("b c.png")
    return folders["llava"]


def talk(lines: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main([*words, "device=cpu", "new_tokens=4"])


def test_a_pipe_gets_answers_and_the_rest_is_told_beside(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "w5\n\n/image b c.png\n/image nowhere.png\n/imge a.png\nw6 <image>\nw6 w7\n/help\n/new\nw5\n/exit\nw99\n"
    assert talk(lines, [str(place), "a.png", "--reduction", "uniform", "budget=3"], monkeypatch) == 0
    out, err = capsys.readouterr()
    model, processor = load_model(place, {"vision": {"name": "uniform", "budget": 3}}, device="cpu")
    expected = Conversation(model, processor, max_new_tokens=4)
    expected.show(Image.open("a.png"))
    first = expected.ask("w5")
    expected.show(Image.open("b c.png"))
    second = expected.ask("w6 w7")
    expected.begin_anew()
    third = expected.ask("w5")
    assert [line.strip() for line in out.splitlines()] == [first.text, second.text, third.text]
    told = [line for line in err.splitlines() if line.startswith(("[", "error: ", "/"))]
    assert told[0].startswith("[kept 3 of 16 visual tokens; first token after ")
    assert told[1] == "[1 picture for the next question]"
    assert (
        told[2] == "error: missing: nowhere.png is not there"
        and "'/imge' is not known; did you mean '/image'" in told[3]
    )
    assert "error: the question holds '<image>' itself" in told[4]
    assert told[5].startswith("[kept 6 of 32 visual tokens of 2 images; ")
    assert [line.split()[0] for line in told[6:10]] == ["/image", "/new", "/help", "/exit"]
    assert told[10] == "[new conversation]" and told[11].startswith("[first token after ") and len(told) == 12


def test_a_pruners_layers_are_averaged(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(place), "a.png", "--reduction", "fastv:layer=2,keep_ratio=0.25"]
    assert talk("w5", words, monkeypatch) == 0
    assert "[kept 16 of 16 visual tokens (averaged over the layers 10); " in capsys.readouterr().err


def test_ctrl_c_ends_an_answer_and_not_the_program(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    before = signal.getsignal(signal.SIGINT)

    def hear(self: Terminal, piece: str) -> None:
        heard.append(piece)
        if len(heard) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "hear", hear)
    assert talk("w5 w6\nw7\n", [str(place), "--reduction", "none"], monkeypatch) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert told[0].startswith("[stopped] [first token after") and told[1].startswith("[first token after")
    assert " 4 tokens" in told[1] and " 4 tokens" not in told[0], "the first one ended early"
    assert signal.getsignal(signal.SIGINT) is before
    heard.clear()
    monkeypatch.setattr(Terminal, "hear", lambda *_: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    assert talk("w5 w6\nw7\n", [str(place), "--reduction", "none"], monkeypatch) == 130, "a second one ends the program"


def test_in_a_terminal_lines_are_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = iter(["w5", KeyboardInterrupt, "w6", EOFError])

    def read(prompt: str) -> str:
        assert prompt == "> "
        said = next(given)
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setattr("builtins.input", read)

    class Terminals(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminals())
    assert main([str(place), "device=cpu", "new_tokens=4"]) == 0 and next(given, None) is None
    assert sum(line.startswith("[first token") for line in capsys.readouterr().err.splitlines()) == 2


def test_a_processor_without_a_chat_template_answers_one_question(folders: dict[str, Path]) -> None:
    model, processor = load_model(folders["paligemma"], {}, device="cpu")
    processor.chat_template = None
    conversation = Conversation(model, processor, max_new_tokens=2)
    conversation.show(photo(1))
    conversation.ask("w5")
    with pytest.raises(InputError, match="no chat template: it takes one question"):
        conversation.ask("w6")
    assert len(conversation.turns) == 1


def test_bits_need_bitsandbytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else found(name, *more)
    )
    with pytest.raises(InputError, match="load=4bit needs bitsandbytes, which is not installed: pip install"):
        load_model(place, load="4bit", device="cpu")


@pytest.mark.trainers
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("load", ["4bit", "8bit"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_language_model_alone_is_held_in_few_bits(name: str, load: str, folders: dict[str, Path]) -> None:
    model, processor = load_model(folders[name], METHOD, device="cpu", load=load)
    inner = model.model
    assert False in {p.is_floating_point() for n, p in inner.language_model.named_parameters() if "proj" in n}
    assert all(p.is_floating_point() for p in [*inner.tower.parameters(), *inner.projector.parameters()])
    conversation = Conversation(model, processor, max_new_tokens=4)
    conversation.show(photo(1))
    answer = conversation.ask("w5 w6")
    (image,) = answer.images
    assert answer.new_tokens and image.kept < image.full and image.layers[-1] < image.kept
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6]])).logits).all()
