"""Chat templates in Jinja against the templates that training and evaluation print, turn by turn and token by token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from published_layouts import sentencepiece_model
from transformers import LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerBase

from llava_prumerge.data.conversation import encode, prompt
from llava_prumerge.data.rounds import place_images
from llava_prumerge.text.templates import TEMPLATES, chat_template
from llava_prumerge.text.tokenizers import add_image_tokens, load_tokenizer

TALKS = [name for name, template in TEMPLATES.items() if not template.captions]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    found = load_tokenizer(folder)
    add_image_tokens(found)
    return found


def turn(role: str, text: str, images: int = 0) -> dict[str, Any]:
    """A message as processors take it."""
    return {"role": role, "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}


def render(tokenizer: PreTrainedTokenizerBase, name: str, messages: list[dict[str, Any]], ask: bool = False) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=chat_template(name), add_generation_prompt=ask, tokenize=False
    )


@pytest.mark.parametrize("name", TALKS)
def test_all_turns_are_printed_alike(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    draw, template = random.Random(1), TEMPLATES[name]
    words = ["the fox", " dog ", "two\nlines\n", "{{ 1 }} {% if %}", "'\"\\", "é日", "  a  b", "1"]
    for _ in range(40):
        rounds = [
            ("".join(draw.choices(words, k=draw.randrange(1, 4))), "".join(draw.choices(words, k=2)))
            for _ in range(draw.randrange(1, 4))
        ]
        images = draw.randrange(3)
        first, *later = [turn("user", question) for question, _ in rounds]
        messages = [turn("user", first["content"][0]["text"], images), *later]
        talk = [part for pair in zip(messages, (turn("assistant", a) for _, a in rounds), strict=True) for part in pair]
        shown = [("<image>\n" * images + rounds[0][0], rounds[0][1]), *rounds[1:]]
        assert render(tokenizer, name, talk) == template.render(shown)
        assert render(tokenizer, name, talk[:-1], True) == template.render([*shown[:-1], (shown[-1][0], None)])
        plain = [{"role": part["role"], "content": part["content"][-1]["text"]} for part in talk]
        assert render(tokenizer, name, plain[:-1], True) == template.render([*rounds[:-1], (rounds[-1][0], None)])


@pytest.mark.parametrize("text", ["<image>\nwhat?", "what? <image>", "a <image> b <image>", "<image>"])
def test_markers_in_a_text_are_placed_as_in_training(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    shown = TEMPLATES["vicuna_v1"].render([(place_images(text), None)])
    assert render(tokenizer, "vicuna_v1", [{"role": "user", "content": text}], True) == shown
    assert (
        render(tokenizer, "vicuna_v1", [turn("user", text, images=1)], True) == shown
    )  # the part says what the marker says


def test_captions_have_no_question(tokenizer: PreTrainedTokenizerBase) -> None:
    talk = [turn("user", "Describe it.", images=1), turn("assistant", "a fox")]
    assert render(tokenizer, "plain", talk) == TEMPLATES["plain"].render([("<image>", "a fox")]) == "<image>a fox\n"
    assert render(tokenizer, "plain", talk[:1], True) == prompt("plain", "Describe it.")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_takes_the_templates_place(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    template, talk = TEMPLATES[name], [turn("system", "Be brief."), turn("user", "why?")]
    if template.system:
        wanted = template.render([("why?", None)]).replace(template.system, "Be brief.")
        assert render(tokenizer, name, talk, True) == wanted and template.system not in wanted
    else:
        with pytest.raises(TemplateError, match="no place for a system message"):
            render(tokenizer, name, talk)


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "system"], ["user", "tool"]])
def test_turns_that_are_no_conversation_are_refused(roles: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TemplateError, match="alternate between user and assistant|must be the first"):
        render(tokenizer, "vicuna_v1", [turn(role, "x") for role in roles])


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2", "chatml_direct"])
def test_the_tokens_are_those_of_evaluation(name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Through a processor: one BOS, and images in the place of their markers."""
    from PIL import Image

    pixels = LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_pad=True)
    processor = LlavaProcessor(
        pixels, tokenizer, 7, "default", num_additional_image_tokens=1, chat_template=chat_template(name)
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    picture = {"type": "image", "image": Image.new("RGB", (40, 30))}
    for question in ("What  is it?", "the fox\njumps", " fox "):
        content = [picture, {"type": "text", "text": question}]
        got = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        wanted = encode(tokenizer, prompt(name, question), image, 16)
        assert got["input_ids"][0] == wanted and wanted.count(image) == 16 and wanted.count(1) == 1
