"""Conversations in batches: the same as one question alone, as the templates write turns, and ended by the texts that end them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_families import write_family
from tiny_llava import REDUCTIONS, tiny_model, tiny_processor

from llava_prumerge.data.images import as_rgb, decode_image
from llava_prumerge.ground.errors import InputError
from llava_prumerge.inference.asking import ask
from llava_prumerge.inference.conversations import Conversations, Turn, placed
from llava_prumerge.model.attach import attach
from llava_prumerge.model.loading import load_model
from llava_prumerge.text.templates import get_template

TOKENS = 4


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def user(*parts: Any) -> Turn:
    return Turn("user", parts)


@pytest.fixture(scope="module")
def llava() -> Conversations:
    return Conversations(tiny_model(REDUCTIONS["pair"]), tiny_processor())


def test_a_batch_says_what_each_question_alone_says(llava: Conversations) -> None:
    asked = [("w3 w4 w5", [photo(1)]), ("w6", [photo(2), photo(1)]), ("w7 w8 w9 w10 w11", [photo(3)])]
    found = llava.replies([[user(*images, text)] for text, images in asked], TOKENS)
    for (text, images), reply in zip(asked, found, strict=True):
        alone = ask(llava.model, llava.processor, text, images, max_new_tokens=TOKENS)
        assert (reply.text, reply.prompt_tokens) == (alone.text, alone.prompt_tokens)
        assert reply.new_tokens == alone.new_tokens
    assert len({reply.text for reply in found}) > 1
    (blind,) = llava.replies([[user("w3 w4")]], TOKENS)
    assert blind.text == ask(llava.model, llava.processor, "w3 w4", max_new_tokens=TOKENS).text


@pytest.mark.parametrize("name", ["llava_next", "internvl"])
def test_other_families_are_asked_by_their_own_templates(name: str, tmp_path: Path) -> None:
    model, processor = load_model(write_family(tmp_path, name), device="cpu")
    attach(model, {"vision": {"name": "uniform", "budget": 3}})
    both = Conversations(model, processor)
    found = both.replies([[user(photo(1), "w3 w4 w5")], [user(photo(2, 64, 33), photo(1), "w6")]], TOKENS)
    for images, text, reply in (([photo(1)], "w3 w4 w5", found[0]), ([photo(2, 64, 33), photo(1)], "w6", found[1])):
        assert reply.text == ask(model, processor, text, images, max_new_tokens=TOKENS).text
    mark = both.text([user(photo(1), "w3")]).removeprefix("w10 ").removesuffix(" w3 w11").strip()
    between = both.text([user("w3", photo(1), "w4"), Turn("assistant", ("w5",)), user("w6")])
    assert between == f"w10 w3 {mark} w4 w10 w5 w10 w6 w11"
    if name == "internvl":  # whose mark is not ours
        with pytest.raises(InputError, match="itself"):
            both.text([user("w3", photo(1), f"w4 {both.chat.mark}"), Turn("assistant", ("w5",)), user("w6")])


def test_turns_are_written_as_in_training(llava: Conversations) -> None:
    vicuna = get_template("vicuna_v1")
    turns = [user(photo(1), "w3"), Turn("assistant", ("w4",)), user("w5 ", photo(2), "w6")]
    assert llava.text(turns) == vicuna.render([("<image>\nw3", "w4"), ("w5 <image>\nw6", None)])
    told = llava.text([Turn("system", ("w9",)), user("w3")])
    assert told == vicuna.render([("w3", None)]).replace(vicuna.system, "w9")
    marked = llava.text([user(photo(1), photo(2), "<image>\nw3 <image> w4")])
    assert marked == vicuna.render([("<image>\nw3 <image>\n w4", None)])


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        ([], "the turns are none"),
        ([Turn("assistant", ("w3",))], "the turns are assistant"),
        ([user("w3"), Turn("assistant", ("w4",))], "the user last"),
        ([user("w3"), user("w4"), user("w5")], "in turn"),
        ([user("w3 <image>")], "1 times '<image>'"),
        ([user(photo(1), "<image> w3 <image>")], "2 times '<image>'"),
        ([user("w3"), Turn("assistant", (photo(1),)), user("w4")], "only turns of the user"),
    ],
)
def test_wrong_turns_are_one_line(turns: list[Turn], line: str, llava: Conversations) -> None:
    with pytest.raises(InputError, match=line):
        llava.text(turns)


def test_images_stand_where_the_text_says() -> None:
    one, two = photo(1), photo(2)
    assert placed([one, two, "left <image> right <image>"]) == ["left ", one, " right ", two]
    assert placed([one, "no mark"]) == [one, "no mark"] and placed(["a", one, "b"]) == ["a", one, "b"]


def test_a_reply_ends_at_the_text_that_ends_it(llava: Conversations) -> None:
    asked = [[user(photo(seed), f"w{seed} w9")] for seed in (3, 4, 5)]
    whole = llava.replies(asked, 8)
    words = whole[0].text.split()
    stop = f"{words[1]} {words[2]}"
    cut = llava.replies(asked, 8, until=["never", stop])
    assert [reply.text for reply in cut] == [reply.text.partition(stop)[0].strip() for reply in whole]
    end = next(at for at in range(7) if words[at : at + 2] == stop.split()) + 2
    assert cut[0].new_tokens == end < whole[0].new_tokens == 8


def test_an_image_in_memory_is_read_as_its_file_is(tmp_path: Path) -> None:
    """One transparent colour, and grey of 16 bits: Pillow's own conversion makes other images of both."""
    flat = photo(1).quantize(8)
    flat.save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(np.arange(0, 60000, 100, dtype=np.uint16).reshape(20, 30)).save(tmp_path / "deep.png")
    for name in ("palette.png", "deep.png"):
        with Image.open(tmp_path / name) as opened:
            before = dict(opened.info)
            made = as_rgb(opened)
            assert opened.info == before and made.info == {} and made.mode == "RGB"
        assert np.array_equal(made, decode_image(tmp_path / name, name))
    assert np.asarray(decode_image(tmp_path / "deep.png", "deep")).std() > 10
