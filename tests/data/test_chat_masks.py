"""Loss masks under a model's own chat template: token by token those that transformers finds by marks in the template."""

from __future__ import annotations

from typing import Any

import pytest
from decoders import KINDS, make_tokenizer, plain

from llava_prumerge.data.conversation import IGNORE_INDEX, MaskError, encode, encode_training, prompt
from llava_prumerge.ground.errors import InputError
from llava_prumerge.text.chat_templates import (
    ChatTemplate,
    ChatTemplateError,
    resolve_template,
    stored_template,
)
from llava_prumerge.text.jinja_sources import with_images
from llava_prumerge.text.templates import NoPlaceError
from llava_prumerge.text.tokenizers import add_image_tokens

every = pytest.mark.parametrize("kind", KINDS)
TALKS = {
    "one turn": [("What colour is this", "red")],
    "an image": [("<image>\nWhat colour is this", "red and blue")],
    "turns": [("<image>\nWhat is this", "a red field"), ("Say the word", "blue"), ("Say  the\nword", "green \n\n red")],
    "images": [("<image>\n<image>\nWhat is this", "a field"), ("<image>\nand this", "white")],
    "edges": [(" What is this \n", "\n red "), ("Say the word\n", " blue")],
}


def tokenizer_of(kind: str, template: str | None = None) -> Any:
    tokenizer = make_tokenizer(kind, template)
    add_image_tokens(tokenizer)
    tokenizer.chat_template = with_images(tokenizer.chat_template)
    return tokenizer


def record(rounds: list[tuple[str, str]]) -> dict[str, Any]:
    turns = [turn for question, answer in rounds for turn in (("human", question), ("gpt", answer))]
    images = ["x.png"] * sum(question.count("<image>") for question, _ in rounds)
    return {"id": "1", "image": images, "conversations": [{"from": role, "value": text} for role, text in turns]}


def messages(rounds: list[tuple[str, str]]) -> list[dict[str, Any]]:
    found = []
    for question, answer in rounds:
        parts = [{"type": "image"}] * question.count("<image>")
        text = question.strip() if parts else question  # as LLaVA's records are brought to their form
        found.append({"role": "user", "content": [*parts, {"type": "text", "text": text.replace("<image>\n", "")}]})
        found.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return found


def marked(kind: str, rounds: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids, and labels by transformers' own reading of the template's marks."""
    tokenizer = tokenizer_of(kind, KINDS[kind]["template"])
    made = tokenizer.apply_chat_template(messages(rounds), return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = list(made["input_ids"]), made["assistant_masks"]
    first = [] if not tokenizer.bos_token or ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id]
    labels = [token if own else IGNORE_INDEX for token, own in zip(ids, mask, strict=True)]
    return first + ids, [IGNORE_INDEX] * len(first) + labels


@every
@pytest.mark.parametrize("talk", TALKS)
def test_the_mask_is_that_of_the_templates_marks(kind: str, talk: str) -> None:
    rounds, tokenizer = TALKS[talk], tokenizer_of(kind)
    made = encode_training(tokenizer, record(rounds), "own", tokenizer.convert_tokens_to_ids("<image>"), 1)
    ids, labels = marked(kind, rounds)
    assert made["input_ids"] == ids
    assert made["labels"] == labels
    assert sum(
        label == tokenizer.convert_tokens_to_ids(resolve_template("own", tokenizer).end) for label in labels
    ) == len(rounds)


@every
@pytest.mark.parametrize("talk", TALKS)
def test_the_mask_begins_where_each_prompt_ends(kind: str, talk: str) -> None:
    """The same, found prefix by prefix: what is asked, then what is said up to the end of the answer."""
    rounds, tokenizer = TALKS[talk], tokenizer_of(kind)
    image, bos = tokenizer.convert_tokens_to_ids("<image>"), tokenizer.bos_token or "none"
    made = encode_training(tokenizer, record(rounds), "own", image, 1)
    own = [label != IGNORE_INDEX for label in made["labels"]]
    starts = [at for at in range(1, len(own)) if own[at] and not own[at - 1]]
    turns = messages(rounds)
    assert len(starts) == len(rounds)
    for number, start in enumerate(starts):
        asked = tokenizer.apply_chat_template(turns[: 2 * number + 1], add_generation_prompt=True, tokenize=False)
        ids = encode(tokenizer, asked.removeprefix(bos), image, 1)
        if kind == "qwen3" and number + 1 < len(rounds):  # thoughts of earlier turns are gone
            continue
        assert made["input_ids"][:start] == ids


@every
def test_the_prompt_is_the_processors(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = prompt(resolve_template("own", tokenizer), "What is this", images=2)
    asked = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is this"}]}
    ]
    assert (tokenizer.bos_token or "") + text in (
        stock := tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False),
        (tokenizer.bos_token or "") + stock,
    )
    assert text.count("<image>\n") == 2
    as_text = [{"role": "user", "content": "<image>\n<image>\nWhat is this"}]
    assert tokenizer.apply_chat_template(as_text, add_generation_prompt=True, tokenize=False) == stock


@every
def test_control_tokens_in_a_record_are_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    template = resolve_template("own", tokenizer)
    special = "<image>" if tokenizer.pad_token in (template.end, tokenizer.eos_token) else tokenizer.pad_token
    made = encode_training(tokenizer, record([(f"What is {special} this", "red")]), template, -1, 1)
    plainly = encode_training(tokenizer, record([("What is this", "red")]), template, -1, 1)
    number = tokenizer.convert_tokens_to_ids(special)
    assert made["input_ids"].count(number) == plainly["input_ids"].count(number)
    assert len(made["input_ids"]) > len(plainly["input_ids"])


SYSTEM_ROLE = [kind for kind in KINDS if not kind.startswith(("gemma", "mistral"))]


@pytest.mark.parametrize("kind", SYSTEM_ROLE)
def test_a_system_text_takes_the_place_of_the_templates_own(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    template = resolve_template("own", tokenizer, system="Say 'red'.")
    text = template.render([("What is this", "red")])
    assert "Say 'red'." in text and "You are helpful." not in text
    asked = [{"role": "system", "content": "Say 'red'."}, {"role": "user", "content": "What is this"}]
    for one, given in ((stored_template(template), asked[1:]), (tokenizer.chat_template, asked)):
        stock = tokenizer.apply_chat_template(given, chat_template=one, add_generation_prompt=True, tokenize=False)
        assert stock.removeprefix(tokenizer.bos_token or "\0") == template.render([("What is this", None)])
    if kind == "qwen2":
        assert "You are helpful." in resolve_template("own", tokenizer).render([("What is this", "red")])


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_a_template_that_refuses_a_system_text_says_so(kind: str) -> None:
    with pytest.raises(NoPlaceError, match="refuses it: .*(not supported|no such role)"):
        resolve_template("own", tokenizer_of(kind), system="Say red.")


@pytest.mark.parametrize("kind", SYSTEM_ROLE)
@pytest.mark.parametrize("talk", TALKS)
def test_a_records_system_text_stands_where_the_template_puts_it(kind: str, talk: str) -> None:
    """Ids and mask are those that transformers makes of the same turns, from a first message of the role system."""
    tokenizer = tokenizer_of(kind)
    told = record(TALKS[talk])
    told["conversations"].insert(0, {"from": "system", "value": "Say 'red'."})
    made = encode_training(tokenizer, told, "own", tokenizer.convert_tokens_to_ids("<image>"), 1)
    stock = tokenizer_of(kind, KINDS[kind]["template"])
    turns = [{"role": "system", "content": [{"type": "text", "text": "Say 'red'."}]}, *messages(TALKS[talk])]
    whole = stock.apply_chat_template(turns, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = list(whole["input_ids"]), list(whole["assistant_masks"])
    if stock.bos_token and ids[0] != stock.bos_token_id:
        ids, mask = [stock.bos_token_id, *ids], [0, *mask]
    assert made["input_ids"] == ids
    assert made["labels"] == [token if own else IGNORE_INDEX for token, own in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    ("kind", "template", "reason"),
    [
        ("gemma2", None, "not supported"),
        ("qwen2", "{%- for m in messages if m['role'] != 'system' -%}{{- '<|im_start|>' + m['content'] + '<|im_end|>' -}}{%- endfor -%}", "0 times"),
        ("qwen2", "{%- for m in messages -%}{{- ('Q ' if m['role'] == 'user' else 'A ') + m['content'] + '<|im_end|>' -}}{%- endfor -%}", "for an answer"),
    ],
)  # fmt: skip
def test_a_records_system_text_is_refused_where_it_has_no_place(kind: str, template: str | None, reason: str) -> None:
    tokenizer = tokenizer_of(kind, template)
    told = record([("What is this", "red")])
    told["conversations"].insert(0, {"from": "system", "value": "Say red."})
    with pytest.raises(MaskError, match=f"system text: template 'own'.*{reason}") as caught:
        encode_training(tokenizer, told, "own", tokenizer.convert_tokens_to_ids("<image>"), 1)
    assert caught.value.kind == "system text" and len(str(caught.value).splitlines()) == 1


def test_a_records_system_text_in_llavas_templates() -> None:
    tokenizer = tokenizer_of("mistral")
    told = record([("<image>\nWhat is this", "red")])
    plainly = encode_training(tokenizer, told, "vicuna_v1", 5, 1)
    own = resolve_template("vicuna_v1", tokenizer).system
    told["conversations"].insert(0, {"from": "system", "value": own})
    assert encode_training(tokenizer, told, "vicuna_v1", 5, 1) == plainly
    told["conversations"][0]["value"] = "Say red."
    made = encode_training(tokenizer, told, "vicuna_v1", 5, 1)
    said = resolve_template("vicuna_v1", tokenizer, system="Say red.")
    told["conversations"] = told["conversations"][1:]
    assert made == encode_training(tokenizer, told, said, 5, 1)
    for name in ("plain", "mistral_instruct"):
        told["conversations"] = [{"from": "system", "value": "Say red."}, *told["conversations"][-2:]]
        with pytest.raises(MaskError, match=f"system text: template '{name}' has no place"):
            encode_training(tokenizer, told, name, 5, 1)


def test_named_templates_take_a_system_text_too() -> None:
    tokenizer = tokenizer_of("mistral")
    template = resolve_template("vicuna_v1", tokenizer, system="Say red.")
    assert template.render([("What is this", "red")]) == "Say red. USER: What is this ASSISTANT: red</s>"
    with pytest.raises(InputError, match="no place for a system text"):
        resolve_template("mistral_instruct", tokenizer, system="Say red.")


BROKEN = {
    "no end": ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "holds no control token"),
    "twice": ("{% for m in messages %}{{ m['content'] + m['content'] + eos_token }}{% endfor %}", "writes a text 2 times"),
    "no image": ("{# <image> #}{% for m in messages %}{{ m['content'] | map(attribute='text') | join + eos_token }}{% endfor %}", "writes no '<image>'"),
    "syntax": ("{% for m in messages %}", "refuses it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_template_that_cannot_be_trained_with_is_refused(fault: str) -> None:
    source, words = BROKEN[fault]
    with pytest.raises(ChatTemplateError, match=words):
        resolve_template("own", tokenizer_of("qwen2", source))


def test_a_text_that_the_template_rewrites_is_a_bad_sample() -> None:
    source = plain(KINDS["qwen2"]["template"]).replace(
        "message['content']", "message['content'] | replace('red', 'RED')"
    )
    tokenizer = tokenizer_of("qwen2", source)
    good = record([("What is this", "blue")])
    assert encode_training(tokenizer, good, "own", -1, 1)["labels"]
    with pytest.raises(MaskError, match="chat template: the chat template makes something else of a turn's text"):
        encode_training(tokenizer, record([("What is this", "red")]), "own", -1, 1)


def test_a_template_that_writes_the_date_goes_on_the_next_day() -> None:
    source = "{{ '<|im_start|>' + day }}" + plain(KINDS["qwen2"]["template"])
    tokenizer = tokenizer_of("qwen2", source)
    days = iter("11112222")
    tokenizer.apply_chat_template = lambda *a, stock=tokenizer.apply_chat_template, **k: stock(
        *a, **k, day=next(days, "2")
    )
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    assert template.render([("What is this", "red")]).startswith("<|im_start|>1")
    assert template.render([("What is this", "red")]).startswith("<|im_start|>2")


def test_a_model_without_chat_template_says_which_there_are() -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="brings no chat template along; there are: .*vicuna_v1"):
        resolve_template("own", tokenizer)
