"""Tokenizers of Llama's kind against sentencepiece, composed as LLaVA composes it, from every form their files come in."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from published_layouts import RUNS, SPACE, sentencepiece_model
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from llava_prumerge.text.sentencepiece_model import build, read_sentencepiece
from llava_prumerge.text.tokenizers import TokenizerError, add_image_tokens, load_tokenizer, save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ROOT.parent / "shared" / "llama_tokenizer"
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
SPELLED = [
    "the fox",
    "  the",
    "fox  ",
    "a   b    c     d",
    "    dog\n\t\tfox\n",
    "",
    " ",
    "   ",
    "é日👍🏽 jumps",
    "▁the",
    "<0x0A>",
]
MIXED = ["the</s>fox", "</s>the", "a</s> fox", "a <s> the", "fox</s></s>the", "  </s>\nthe", "the<unk>fox </s"]
AROUND = ["USER: <image>\nthe fox", "<image>", "<image><image>fox", "the<image>  fox</s>dog", " <image> <image> "]


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_model()


class Reference:
    """What transformers 4.37's slow LlamaTokenizer does with sentencepiece, and LLaVA's `tokenizer_image_token` with that."""

    def __init__(self, model: bytes) -> None:
        bare = sentencepiece_model_pb2.ModelProto.FromString(model)
        bare.normalizer_spec.add_dummy_prefix = False
        self.prefixed = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bare = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())

    def ids(self, text: str, legacy: bool, image: int) -> list[int]:
        found: list[int] = []
        for number, chunk in enumerate(text.split("<image>")):
            found += [image] if number else []
            for place, piece in enumerate(re.split("(<unk>|<s>|</s>)", chunk)):
                if piece in SPECIAL:
                    found.append(SPECIAL[piece])
                else:
                    found += (self.prefixed if legacy or place == 0 else self.bare).encode(piece)
        return found


def settings(**values: Any) -> dict[str, Any]:
    tokens = {f"{key}_token": {"__type": "AddedToken", "content": f"<{sign}>", "normalized": False, "lstrip": False}
              | {"rstrip": False, "single_word": False} for key, sign in (("bos", "s"), ("eos", "/s"), ("unk", "unk"))}  # fmt: skip
    return tokens | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048} | values


def model_alone(folder: Path, model: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(model)


def model_of_vicuna(folder: Path, model: bytes) -> None:
    model_alone(folder, model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings(legacy=False, pad_token=None)))


def model_beside_llavas_config(folder: Path, model: bytes) -> None:
    model_of_vicuna(folder, model)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))


def json_of_transformers_4(folder: Path, model: bytes) -> None:
    model_alone(folder, model)
    build(read_sentencepiece(folder / "tokenizer.model"), legacy=True).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").unlink()


def json_of_llava_hf(folder: Path, model: bytes) -> None:
    json_of_transformers_4(folder, model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings(legacy=False, tokenizer_class="LlamaTokenizer")))


def json_of_transformers_5(folder: Path, model: bytes) -> None:
    """With `Metaspace`, and with merges in the order of the ids beside the model that says better."""
    model_of_vicuna(folder, model)
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)


def metaspace_json(folder: Path, model: bytes) -> None:
    json_of_transformers_4(folder, model)
    values = json.loads((folder / "tokenizer.json").read_text())
    values |= {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "split": False}}
    values["pre_tokenizer"]["prepend_scheme"] = "first"
    (folder / "tokenizer.json").write_text(json.dumps(values))


def saved_by_us(folder: Path, model: bytes) -> None:
    model_of_vicuna(folder, model)
    save_tokenizer(load_tokenizer(folder), folder)
    (folder / "tokenizer.model").unlink()


FORMS: dict[
    str, tuple[Callable[[Path, bytes], None], bool]
] = {  # how a folder is made, and what its settings say of `legacy`
    "model alone": (model_alone, True),
    "model of Vicuna": (model_of_vicuna, False),
    "model beside LLaVA's config.json": (model_beside_llavas_config, False),
    "tokenizer.json of transformers 4": (json_of_transformers_4, True),
    "tokenizer.json of llava-hf": (json_of_llava_hf, False),
    "tokenizer.json of transformers 5": (json_of_transformers_5, False),
    "tokenizer.json with Metaspace alone": (metaspace_json, False),
    "tokenizer.json of ours": (saved_by_us, False),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_sentencepieces_as_llava_composes_them(form: str, model: bytes, tmp_path: Path) -> None:
    make, legacy = FORMS[form]
    make(tmp_path, model)
    tokenizer, reference = load_tokenizer(tmp_path), Reference(model)
    add_image_tokens(tokenizer)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert image == len(tokenizer) - 2 and (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<s>",
        "</s>",
        "<pad>",
    )
    draw = random.Random(3)
    parts = [" ", "  ", "\n", "\t", "the", "fox", "dog 1", "é", "</s>", "<s>", "<image>", "日", "<", "/s>", "USER:"]
    drawn = ["".join(draw.choices(parts, k=draw.randrange(9))) for _ in range(300)]
    for text in [*SPELLED, *MIXED, *AROUND, *drawn]:
        wanted = reference.ids(text, legacy, image)
        assert tokenizer(text)["input_ids"] == [1, *wanted], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == wanted, text
    for text in SPELLED:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.replace(SPACE, " "), (
            text
        )
    assert list(tokenizer("the fox")) == ["input_ids", "attention_mask"]


def test_the_order_of_merges_matters_to_this_model(model: bytes, tmp_path: Path) -> None:
    """Otherwise the test above would pass with merges in the order of the ids."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    assert [proto.pieces[259 + number].piece for number in range(len(RUNS))] == list(RUNS)
    right = build(proto, legacy=True)
    for number, piece in enumerate(proto.pieces):
        piece.score = -float(number)
    wrong = build(proto, legacy=True)
    assert any(right.encode(text).ids != wrong.encode(text).ids for text in SPELLED)


def test_normalisers_and_own_symbols_of_a_sentencepiece_model(tmp_path: Path) -> None:
    """What Llama's model has none of: NFKC, extra spaces removed, symbols that are never split."""
    lines = [f"the quick brown fox {n} jumps over the lazy dog" for n in range(200)]
    settings = dict(model_type="bpe", vocab_size=330, byte_fallback=True, user_defined_symbols=["[IMG]", "<sep>"])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "tokenizer"), minloglevel=2, **settings
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("the  fox ", "ﬁne ｆｏｘ", "the[IMG]fox", "[IMG] dog<sep>", "[IMG]dog"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), text


def byte_level() -> Tokenizer:
    core = Tokenizer(
        models.BPE({"<unk>": 0} | {c: n + 1 for n, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return core


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_other_kinds_pass_through(kind: str, tmp_path: Path) -> None:
    if kind == "gpt2":
        PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<unk>").save_pretrained(tmp_path)
    else:
        Qwen2Tokenizer(vocab=byte_level().get_vocab(), merges=[]).save_pretrained(tmp_path)
    mine, stock = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(mine) is type(stock) and mine.backend_tokenizer.to_str() == stock.backend_tokenizer.to_str()
    assert mine.special_tokens_map == stock.special_tokens_map
    save_tokenizer(mine, tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in ("two  spaces\n", "été 🙂", ""):
        assert mine(text)["input_ids"] == stock(text)["input_ids"] == again(text)["input_ids"]


def test_what_is_written_is_read_by_old_releases_and_names_no_place(model: bytes, tmp_path: Path) -> None:
    model_of_vicuna(tmp_path, model)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template, tokenizer.padding_side = "{{ messages }}", "left"
    save_tokenizer(tokenizer, tmp_path / "saved")
    values = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast" and values["legacy"] is False
    assert values["chat_template"] == "{{ messages }}" and values["padding_side"] == "left"
    assert values["model_input_names"] == ["input_ids", "attention_mask"] and not values["clean_up_tokenization_spaces"]
    merges = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["model"]["merges"]
    assert all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)
    for file in (tmp_path / "saved").iterdir():
        assert not re.search(r"is_local|local_files_only|name_or_path|" + re.escape(str(tmp_path)), file.read_text())
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert all(stock(text)["input_ids"] == tokenizer(text)["input_ids"] for text in [*SPELLED, *MIXED])


@pytest.mark.parametrize("fault", ["nothing", "json cut short", "model cut short"])
def test_what_cannot_be_read_is_one_line_with_the_folder(fault: str, model: bytes, tmp_path: Path) -> None:
    if fault == "json cut short":
        (tmp_path / "tokenizer.json").write_text('{"model": {')
    elif fault == "model cut short":
        (tmp_path / "tokenizer.model").write_bytes(model[: len(model) // 2])
    with pytest.raises(TokenizerError, match=re.escape(f"{tmp_path}: no tokenizer there can be read")) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_else_reads_tokenizers() -> None:
    """Every path through the package gets its tokenizer from `load_tokenizer`."""
    readers = (
        "AutoTokenizer",
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "PreTrainedTokenizerFast",
        "AutoProcessor",
        "LlavaProcessor",
    )
    found = set()
    for file in (ROOT / "llava_prumerge").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and isinstance(node.value, ast.Name):
                found |= {file.name} if node.value.id in readers else set()
    # family_processors.py takes the processors that other families bring along; text_side.py reads CLIP's own
    assert found == {"tokenizers.py", "family_processors.py", "text_side.py"}


@pytest.mark.skipif(
    not LLAMA.is_dir(), reason="Llama's own tokenizer.model is not here; its licence keeps it out of the project"
)
def test_llamas_own_model_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((LLAMA / "tokenizer.model").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    add_image_tokens(tokenizer)
    reference = json.loads((LLAMA / "reference.json").read_text())
    for case in reference["plain"]:
        assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"], case["text"]
    for case in reference["prompts"]:
        wanted = [32000 if number == -200 else number for number in case["ids"]]
        assert tokenizer(case["prompt"])["input_ids"] == wanted, case["prompt"]
    # Two turns: by transformers 4.37.2's slow tokenizer, without and with a prefix after the end of an answer.
    turns = "a</s>USER: b"
    assert tokenizer(turns, add_special_tokens=False)["input_ids"] == [263, 2, 3148, 1001, 29901, 289]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings(legacy=False)))
    assert load_tokenizer(tmp_path)(turns, add_special_tokens=False)["input_ids"] == [263, 2, 11889, 29901, 289]
