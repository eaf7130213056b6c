"""Templates against LLaVA's text, loss masks against masks written by hand and against LLaVA's own counting rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava_prumerge.data import conversation
from llava_prumerge.data.conversation import (
    IGNORE_INDEX,
    describe_record,
    encode,
    encode_training,
    prompt,
)
from llava_prumerge.data.rounds import MaskError, place_images
from llava_prumerge.text.templates import TEMPLATES, get_template

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA_TOKENS = (
    "▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant . ▁The ▁assistant ▁gives "
    "▁helpful , ▁detailed , ▁and ▁polite ▁answers ▁to ▁the ▁user ' s ▁questions ."
)
# As many images as markers; four placeholders each, shown as "#".
PATCHES = 4
IMAGE_ID = 9000

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


def record(*values: str, images: int = 0, **fields: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x1", "image": [f"{i}.jpg" for i in range(images)], "conversations": turns, **fields}


def show(tokenizer: PreTrainedTokenizerFast, encoded: dict[str, list[int]]) -> str:
    """Tokens with the supervised ones in brackets, an image as "#"s."""
    words = []
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (token, IGNORE_INDEX)
        word = "#" if token == IMAGE_ID else tokenizer.convert_ids_to_tokens(token)
        words.append(f"[{word}]" if label != IGNORE_INDEX else word)
    return " ".join(words)


GOLDEN = {
    "one turn": (
        "vicuna_v1",
        record("<image>\nhi?", "red cat.", images=1),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ # # # # ▁ <0x0A> h i ? ▁ASSISTANT : [▁red] [▁cat] [.] [</s>]",
    ),
    "image at the end, stripped": (
        "v1",
        record("hi? \n<image>", "dog", images=1),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ # # # # ▁ <0x0A> h i ? ▁ASSISTANT : [▁dog] [</s>]",
    ),
    "several turns": (
        "vicuna_v1",
        record("<image>\nhi?", "yes", "two cat?", "two", images=1),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ # # # # ▁ <0x0A> h i ? ▁ASSISTANT : [▁yes] [</s>] "
        "▁USER : ▁two ▁cat ? ▁ASSISTANT : [▁two] [</s>]",
    ),
    "text only": (
        "vicuna_v1",
        record("red dog?", "yes, two"),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁red ▁dog ? ▁ASSISTANT : [▁yes] [,] [▁two] [</s>]",
    ),
    "several images": (
        "vicuna_v1",
        record("<image> two <image> cat?", "yes", "dog <image>", "red", images=3),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ # # # # ▁ <0x0A> # # # # ▁ <0x0A> t w o ▁ ▁cat ? ▁ASSISTANT : [▁yes] [</s>] "
        "▁USER : ▁ # # # # ▁ <0x0A> d o g ▁ASSISTANT : [▁red] [</s>]",
    ),
    "the space before an answer is its own where it is a token": (
        "vicuna_v1",
        record("red?", "5\n"),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁red ? ▁ASSISTANT : [▁] [<0x35>] [<0x0A>] [</s>]",
    ),
    "only an image asked": (
        "vicuna_v1",
        record("<image>", "cat", images=1),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ # # # # ▁ ▁ASSISTANT : [▁cat] [</s>]",
    ),
    "a first answer without a question is dropped": (
        "vicuna_v1",
        {
            "conversations": [
                {"from": "gpt", "value": "yes"},
                {"from": "human", "value": "red?"},
                {"from": "gpt", "value": "dog"},
            ]
        },
        f"<s> {VICUNA_TOKENS} ▁USER : ▁red ? ▁ASSISTANT : [▁dog] [</s>]",
    ),
    "caption": (
        "plain",
        record("Say what it is.\n<image>", "two red cat", images=1),
        "<s> # # # # [▁two] [▁red] [▁cat] [<0x0A>]",
    ),
    "caption of several images": (
        "plain",
        record("<image><image>", "cat", images=2),
        "<s> # # # # # # # # [▁cat] [<0x0A>]",
    ),
}


NOTED = {
    "blank answer": (
        "vicuna_v1",
        record("red?", "", "two?", "cat"),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁red ? ▁ASSISTANT : ▁ </s> ▁USER : ▁two ? ▁ASSISTANT : [▁cat] [</s>]",
    ),
    "blank caption": ("plain", record("<image>", "", images=1), "<s> # # # # [▁] [<0x0A>]"),
    "repeated marker": (
        "vicuna_v1",
        record("<image>\n<image> red?", "cat", images=1),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ # # # # ▁ <0x0A> r e d ? ▁ASSISTANT : [▁cat] [</s>]",
    ),
    "marker as text": (
        "vicuna_v1",
        record("two <image> dog", "red <image> cat"),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁two ▁ < i m a g e > ▁dog ▁ASSISTANT : [▁red] [▁] [<] [i] [m] [a] [g] [e] [>] [▁cat] "
        "[</s>]",
    ),
    "token as text": (
        "vicuna_v1",
        record("<s>red</s", "<unk> cat<s>"),
        f"<s> {VICUNA_TOKENS} ▁USER : ▁ < s > r e d < / s ▁ASSISTANT : [▁] [<] [u] [n] [k] [>] [▁cat] [<] [s] [>] [</s>]",
    ),
}


@pytest.mark.parametrize("case", NOTED)
def test_odd_records_are_taken_and_told(word_tokenizer: PreTrainedTokenizerFast, case: str) -> None:
    template, sample, expected = NOTED[case]
    assert show(word_tokenizer, encode_training(word_tokenizer, sample, template, IMAGE_ID, PATCHES)) == expected
    kind = "blank answer" if case == "blank caption" else case
    assert [note for note, _ in describe_record(word_tokenizer, sample, template)] == [kind]


def test_sound_records_have_no_other_notes(word_tokenizer: PreTrainedTokenizerFast) -> None:
    for template, sample, _ in GOLDEN.values():
        first = sample["conversations"][0]["from"] == "gpt"
        assert [kind for kind, _ in describe_record(word_tokenizer, sample, template)] == ["answer first"] * first


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_llama_2", "mistral_instruct"])
def test_a_named_token_changes_nothing_around_it(word_tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """Control tokens are then cut out before the tokenizer sees the text."""
    text = get_template(template).render([("<image>\nQQQ? ", "red cat"), (" two\n", " dog "), ("猫", "naïve")])
    expected, at = encode(word_tokenizer, text, IMAGE_ID, PATCHES), text.index("QQQ")
    named = f"{text[:at]}<s>{text[at + 3 :]}"
    written = bytes(at) + b"\1\1\1" + bytes(len(text) - at - 3)
    ids, spans = conversation._tokenise(
        word_tokenizer, named, conversation._Images("<image>", IMAGE_ID, PATCHES), written
    )
    place = expected.index(word_tokenizer.convert_tokens_to_ids("Q"))
    expected[place : place + 3] = word_tokenizer.convert_tokens_to_ids(["<", "s", ">"])
    assert ids == expected
    characters = [named[start:end] for start, end in spans if end - start == 1]
    assert "".join(characters).count("<s>") == 1 and spans[-1][1] == len(named)


@pytest.mark.parametrize("case", GOLDEN)
def test_masks_equal_those_written_by_hand(word_tokenizer: PreTrainedTokenizerFast, case: str) -> None:
    template, sample, expected = GOLDEN[case]
    assert show(word_tokenizer, encode_training(word_tokenizer, sample, template, IMAGE_ID, PATCHES)) == expected


def test_a_tokenizer_without_a_space_after_end_of_answer_is_masked_too(spell_tokenizer: MakeTokenizer) -> None:
    """The case for which the original code subtracts one per round, rightly for one vocabulary only."""
    tokenizer = spell_tokenizer(["US"], scheme="first")
    encoded = encode_training(tokenizer, record("red?", "yes", "two?", "cat"), "vicuna_v1", IMAGE_ID, PATCHES)
    assert show(tokenizer, encoded).endswith("[▁yes] [</s>] US E R : ▁two ? ▁ASSISTANT : [▁cat] [</s>]")


def test_templates_print_what_llava_prints() -> None:
    rounds = [("<image>\nq1", "a1"), ("q2", "a2")]
    assert (
        get_template("v1").render(rounds) == f"{VICUNA} USER: <image>\nq1 ASSISTANT: a1</s>USER: q2 ASSISTANT: a2</s>"
    )
    assert get_template("llava_v1").render(rounds).startswith("A chat between a curious human and")
    assert "to the human's questions. USER: <image>\nq1" in get_template("llava_v1").render(rounds)
    llama_2 = get_template("llava_llama_2").render(rounds)
    assert llama_2.startswith("[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able")
    assert llama_2.endswith("natural language.\n<</SYS>>\n\n<image>\nq1 [/INST] a1 </s><s>[INST] q2 [/INST] a2 </s>")
    assert (
        get_template("mistral_instruct").render(rounds) == "[INST] <image>\nq1 [/INST] a1 </s>[INST] q2 [/INST] a2 </s>"
    )
    assert get_template("chatml_direct").render(rounds) == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nq1<|im_end|>"
        "<|im_start|>assistant\na1<|im_end|><|im_start|>user\nq2<|im_end|><|im_start|>assistant\na2<|im_end|>"
    )
    assert get_template("mpt").render(rounds).startswith("<|im_start|>system\nA conversation between a user and an LLM")
    assert get_template("plain").render([("<image>", "a cat")]) == "<image>a cat\n"


def test_prompts_end_where_the_model_speaks() -> None:
    assert prompt("vicuna_v1", "what?") == f"{VICUNA} USER: <image>\nwhat? ASSISTANT:"
    assert prompt("vicuna_v1", "what?", images=0) == f"{VICUNA} USER: what? ASSISTANT:"
    assert prompt("vicuna_v1", "what?", images=2) == f"{VICUNA} USER: <image>\n<image>\nwhat? ASSISTANT:"
    assert prompt("plain", "dropped") == "<image>"
    history = TEMPLATES["vicuna_v1"].render([("q1", "a1"), ("q2", None)])
    assert history == f"{VICUNA} USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:"
    with pytest.raises(ValueError, match="holds '<image>' itself"):
        prompt("vicuna_v1", "<image>\nwhat?")
    with pytest.raises(ValueError, match="only the last answer"):
        TEMPLATES["vicuna_v1"].render([("q1", None), ("q2", None)])


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2", "mistral_instruct", "plain"])
def test_a_prompt_is_the_beginning_of_its_training_sample(word_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    encoded = encode_training(word_tokenizer, record("<image>\nhi?", "red cat", images=1), name, IMAGE_ID, PATCHES)
    ids = encode(word_tokenizer, prompt(name, "hi?"), IMAGE_ID, PATCHES)
    assert encoded["input_ids"][: len(ids)] == ids
    assert [label == IGNORE_INDEX for label in encoded["labels"]] == [
        i < len(ids) for i in range(len(encoded["labels"]))
    ]


def test_image_markers_move_to_the_front() -> None:
    assert place_images(" as it is ") == " as it is "
    assert place_images("what <image> is it? ") == "<image>\nwhat  is it?"
    assert place_images("<image>\nwhat?") == "<image>\nwhat?"
    assert place_images("<image>") == "<image>"
    assert place_images("a<image>b\n<image>") == "<image>\n<image>\nab"


def test_encode_is_chunk_wise_with_one_bos(word_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode(word_tokenizer, "red<image>cat<image>", IMAGE_ID, 2)
    tokens = ["#" if i == IMAGE_ID else word_tokenizer.convert_ids_to_tokens(i) for i in ids]
    assert " ".join(tokens) == "<s> ▁red # # ▁cat # #"
    assert encode(word_tokenizer, "", IMAGE_ID, 2) == [word_tokenizer.bos_token_id]


def test_a_tokenizer_without_bos_gets_none(spell_tokenizer: MakeTokenizer) -> None:
    core = Tokenizer.from_str(spell_tokenizer().backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    bare = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    assert bare.convert_ids_to_tokens(encode(bare, "red", IMAGE_ID, 2)) == ["▁red"]


BAD = {
    "role": record("hi", "yes", conversations=[{"from": "user", "value": "hi"}, {"from": "gpt", "value": "yes"}]),
    "empty conversation": record(),
    "turn order": record("hi", "yes", "and"),
    "empty turn": record("hi", "  "),
    "image markers": record("<image>\nhi", "yes", images=2),
    "image in answer": record("hi", "yes <image>", images=1),
    "image without marker": record("hi", "yes", images=1),
    "marker without image": record("<image>\nhi", "yes"),
    "end of answer in text": record("hi", "yes</s>no"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_masked_is_refused_with_its_id(word_tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    with pytest.raises(MaskError, match="sample x1: ") as caught:
        encode_training(word_tokenizer, BAD[kind], "vicuna_v1", IMAGE_ID, PATCHES)
    assert caught.value.kind == kind
    assert caught.value.sample_id == "x1"


@pytest.mark.parametrize(
    ("template", "sample", "kind"),
    [
        ("vicuna_v1", record("hi", "yes", "what is it? <image>\n", "cat"), "marker without image"),
        ("vicuna_v1", record("<image>", "yes", "<image>", "no", images=1), "image markers"),
        ("vicuna_v1", record("<image> <image>", "yes", images=3), "image markers"),
        ("vicuna_v1", record("  ", "yes"), "empty turn"),
        ("vicuna_v1", record("hi", "", "ho", "\n"), "empty turn"),
        ("vicuna_v1", record("hi", "yes", conversations=None), "empty conversation"),
        ("vicuna_v1", record("hi", conversations=[{"from": "gpt", "value": "hi"}]), "empty conversation"),
        ("vicuna_v1", record(conversations=[{"from": "human", "value": "a"}] * 2), "turn order"),
        ("vicuna_v1", record("</<image>s>hi", "yes", images=1), "end of answer in text"),
        ("vicuna_v1", record("<ima<image>ge>hi", "yes", images=1), "image markers"),
        ("plain", record("<image>", "cat</s>", images=1), "end of answer in text"),
        ("plain", record("<image>", "cat", images=2), "image markers"),
        ("plain", record("hi", "cat"), "caption"),
        ("plain", record("<image>", "cat", "and", "dog", images=1), "caption"),
    ],
)
def test_further_refusals(
    word_tokenizer: PreTrainedTokenizerFast, template: str, sample: dict[str, Any], kind: str
) -> None:
    with pytest.raises(MaskError) as caught:
        encode_training(word_tokenizer, sample, template, IMAGE_ID, PATCHES)
    assert caught.value.kind == kind


def test_a_token_across_question_and_answer_is_refused(spell_tokenizer: MakeTokenizer) -> None:
    tokenizer = spell_tokenizer([":▁"])
    with pytest.raises(MaskError, match="straddling token: ': '"):
        encode_training(tokenizer, record("hi?", "5"), "vicuna_v1", IMAGE_ID, PATCHES)


def test_a_template_whose_end_is_no_token_is_an_error(word_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"ends answers with '<\|im_end\|>', which is no token"):
        encode_training(word_tokenizer, record("hi?", "yes"), "chatml_direct", IMAGE_ID, PATCHES)


def test_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown template 'vicuna'; known: .*plain, v1, vicuna_v1"):
        get_template("vicuna")


def test_truncation_counts_placeholders_and_is_never_silent(word_tokenizer: PreTrainedTokenizerFast) -> None:
    sample = record("<image>\nhi?", "red cat dog", images=1)
    full = encode_training(word_tokenizer, sample, "vicuna_v1", IMAGE_ID, 50, None)
    length = len(full["input_ids"])
    assert encode_training(word_tokenizer, sample, "vicuna_v1", IMAGE_ID, 50, length) == full
    cut = encode_training(word_tokenizer, sample, "vicuna_v1", IMAGE_ID, 50, length - 3)
    assert cut == {key: value[:-3] for key, value in full.items()}
    with pytest.raises(MaskError, match="no supervised token"):
        encode_training(word_tokenizer, sample, "vicuna_v1", IMAGE_ID, 50, length - 4)
    with pytest.raises(MaskError, match="image cut"):
        encode_training(word_tokenizer, sample, "vicuna_v1", IMAGE_ID, 50, 60)
    with pytest.raises(MaskError, match="image cut"):
        second = record("hi?", "red", "<image>", "cat", images=1)
        encode_training(word_tokenizer, second, "vicuna_v1", IMAGE_ID, 50, 45)


# The original rule, counted anew: split at the end token, then at the answer's mark, and measure both in tokens.


def count(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids = [1]
    for number, chunk in enumerate(text.split("<image>")):
        ids += ([IMAGE_ID] if number else []) + tokenizer(chunk)["input_ids"][1:]
    return ids


def counted_labels(tokenizer: PreTrainedTokenizerFast, text: str, mark: str) -> tuple[list[int], list[int]]:
    ids = count(tokenizer, text)
    labels, position = [IGNORE_INDEX] * len(ids), 1
    for part in text.split("</s>")[:-1]:
        question = part.split(mark)[0] + mark
        answer_starts = position + len(count(tokenizer, question)) - 2
        position += len(count(tokenizer, part))
        labels[answer_starts:position] = ids[answer_starts:position]
    assert position == len(ids), "the rule does not count this text right"
    return ids, labels


def expand(ids: list[int], labels: list[int]) -> dict[str, list[int]]:
    repeats = [PATCHES if token == IMAGE_ID else 1 for token in ids]
    return {
        "input_ids": [token for token, times in zip(ids, repeats, strict=True) for _ in range(times)],
        "labels": [label for label, times in zip(labels, repeats, strict=True) for _ in range(times)],
    }


def random_text(source: random.Random, edges: bool) -> str:
    pieces = "red|cat|the|ASSISTANT|USER:|don't|7|1999|naïve|猫|🐈|(x)|...|a\n\nb|two  |[INST]|{}"
    text = " ".join(source.choices(pieces.split("|"), k=source.randint(1, 9)))
    if edges:
        text = source.choice(["", " ", "\n", "  "]) + text + source.choice(["", " ", "\n"])
    return text


@pytest.fixture(scope="module")
def trained_tokenizer(wrap_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    """Merges learnt word by word, as SentencePiece's are."""
    source = random.Random(0)
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False, limit_alphabet=60)
    core.train_from_iterator([VICUNA, *(random_text(source, edges=False) for _ in range(300))], trainer)
    return wrap_tokenizer(Tokenizer(core.model))


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2"])
def test_masks_equal_the_original_rule(trained_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    source = random.Random(name)
    mark = {"vicuna_v1": " ASSISTANT: ", "llava_llama_2": "[/INST] "}[name]
    for _ in range(300):
        values, images = [], 0
        for _ in range(source.randint(1, 4)):
            question = random_text(source, edges=True)
            if source.random() < 0.4:
                images += 1
                question = source.choice(["<image>\n" + question, question + "<image>"])
            values += [question, random_text(source, edges=True)]
        rounds = [(place_images(q), a) for q, a in zip(values[::2], values[1::2], strict=True)]
        expected = expand(*counted_labels(trained_tokenizer, get_template(name).render(rounds), mark))
        actual = encode_training(trained_tokenizer, record(*values, images=images), name, IMAGE_ID, PATCHES)
        assert actual == expected, values


def test_captions_equal_the_original_rule(trained_tokenizer: PreTrainedTokenizerFast) -> None:
    source = random.Random(1)
    for _ in range(200):
        caption = random_text(source, edges=True)
        ids = count(trained_tokenizer, f"<image>{caption}\n")
        expected = expand(ids, [IGNORE_INDEX] * 2 + ids[2:])
        sample = record("Describe.\n<image>", caption, images=1)
        assert encode_training(trained_tokenizer, sample, "plain", IMAGE_ID, PATCHES) == expected


def test_chatml_is_masked_at_its_own_end_token(spell_tokenizer: MakeTokenizer) -> None:
    tokenizer = spell_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    encoded = encode_training(tokenizer, record("hi", "a cat", "so", "b"), "chatml_direct", IMAGE_ID, PATCHES)
    supervised = [token for token, label in zip(*encoded.values(), strict=True) if label != IGNORE_INDEX]
    assert " ".join(tokenizer.convert_ids_to_tokens(supervised)) == "a ▁cat <|im_end|> b <|im_end|>"
