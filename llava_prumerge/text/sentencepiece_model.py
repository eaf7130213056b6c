"""Llama's kind of tokenizer in the `tokenizers` library, made from a sentencepiece model or mended in a tokenizer.json.

The reference is transformers 4.37's slow `LlamaTokenizer`, which LLaVA uses: sentencepiece itself, between the special
tokens. transformers 5 departs from it in two ways. It orders the merges of a sentencepiece model by the pieces' ids and
not by their scores, so that Llama's runs of spaces merge first. And it puts the space before a text (sentencepiece's
dummy prefix) by a `Metaspace` pre-tokenizer, which leaves it out after an image.

Here merges are ordered by score, and the dummy prefix is put by the normaliser, which sees each piece of text between
two image tokens alone, as LLaVA tokenises it. What comes after `</s>` and the like has the prefix where the settings
say `legacy: true`, which is transformers' default too, and has none where they say `legacy: false`, as Vicuna's do.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces in sentencepiece's protocol
BPE_MODEL = 2
OWN = ("<unk>", "<s>", "</s>")
_STEPS = ("normalizer", "pre_tokenizer", "decoder")
Merge = tuple[str, str]


def read_sentencepiece(file: Path) -> Any | None:
    """The model in a file; None where it is no sentencepiece model with byte-pair encoding."""
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError:
        return None
    return proto if proto.pieces and proto.trainer_spec.model_type == BPE_MODEL else None


def merges_by_score(proto: Any) -> list[Merge]:
    """The merges that give sentencepiece's segmentation: best score first, long left parts first among equals.

    Among equal scores sentencepiece merges leftmost first. Llama's runs of spaces all have the lowest score, and grow
    from the left for that reason, which is what a longer left part first comes to.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    found = [(score, left, right) for word, score in scores.items() for left, right in _halves(word, scores)]
    found.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [(left, right) for _, left, right in found]


def _halves(word: str, known: Container[str]) -> Iterator[Merge]:
    parts = ((word[:at], word[at:]) for at in range(1, len(word)))
    return ((left, right) for left, right in parts if left in known and right in known)


def build(proto: Any, legacy: bool, bos: bool = True, eos: bool = False) -> Tokenizer:
    """A tokenizer that gives sentencepiece's ids.

    Args:
        proto: of `read_sentencepiece`.
        legacy: whether text after a special token has the dummy prefix.
        bos: put the beginning of sequence before each text.
        eos: put the end of sequence after it.
    """
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    spec = proto.trainer_spec
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges_by_score(proto),
            unk_token=spec.unk_piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    )
    own = [p.piece for p in proto.pieces if p.type == UNKNOWN]
    own += [piece for piece in (spec.bos_piece, spec.eos_piece) if piece in vocabulary]
    defined = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    tokenizer.normalizer = _normaliser(proto.normalizer_spec, [] if legacy else own, defined)
    tokenizer.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=not legacy) for token in own])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=True) for token in defined])
    tokenizer.post_processor = frame(vocabulary, spec.bos_piece if bos else None, spec.eos_piece if eos else None)
    return tokenizer


def frame(vocabulary: Mapping[str, int], bos: str | None, eos: str | None) -> processors.PostProcessor:
    """What puts the ends of a sequence around its tokens; an end that is None or not in the vocabulary is left out."""
    first, last = ([token] if token in vocabulary else [] for token in (bos, eos))
    single = " ".join([*(f"{token}:0" for token in first), "$A:0", *(f"{token}:0" for token in last)])
    pair = single + " " + single.replace(":0", ":1").replace("$A", "$B")
    ends = [(str(token), vocabulary[str(token)]) for token in (*first, *last)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def _normaliser(spec: Any, bare: Sequence[str], defined: Sequence[str]) -> normalizers.Normalizer:
    """Args: bare are tokens before which no prefix is put; spec is sentencepiece's own."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.add_dummy_prefix and (bare or defined):
        steps.append(normalizers.Replace(Regex(_unprefixed(bare, defined)), ""))
    return normalizers.Sequence(steps)


def _unprefixed(bare: Sequence[str], defined: Sequence[str] = ()) -> str:
    r"""A pattern for the prefix of a text that begins with a special token, which has none.

    It also keeps such tokens findable: `tokenizers` looks for their normalised form. sentencepiece's user-defined
    symbols do have the prefix at the beginning of a text, so only the symbol alone (`\z`) is meant.
    """
    words = [*map(re.escape, bare), *(re.escape(word) + r"\z" for word in defined)]
    return rf"\A{SPACE}(?={'|'.join(words)})"


def _decoder(prefixed: bool = True) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefixed else [])])


def prefix_of(values: dict[str, Any]) -> str | None:
    """How a tokenizer.json puts the dummy prefix, if it is of Llama's kind at all.

    Returns:
        "each" before each text between special tokens (Llama's releases), "bare" as `build` without `legacy`, "first" or
        "always" by a `Metaspace` pre-tokenizer (transformers from 4.40 on), None for another kind of tokenizer.
    """
    model, normaliser, splitter = (values.get(key) or {} for key in ("model", "normalizer", "pre_tokenizer"))
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return None
    steps = [_step(step) for step in normaliser.get("normalizers", [normaliser] if normaliser else [])]
    if not splitter and steps[:2] == [("Prepend", SPACE), ("Replace", " ", SPACE)]:
        if len(steps) == 2:
            return "each"
        return "bare" if len(steps) == 3 and str(steps[2][1]).startswith(rf"\A{SPACE}") else None
    if not steps and splitter.get("type") == "Metaspace" and splitter.get("split") is False:
        return splitter["prepend_scheme"] if splitter.get("prepend_scheme") in ("first", "always") else None
    return None


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    if step.get("type") == "Replace":
        pattern = step["pattern"]
        return "Replace", pattern.get("String", pattern.get("Regex")), step["content"]
    return step.get("type"), step.get("prepend")


def mend(values: dict[str, Any], legacy: bool, proto: Any | None = None, own: Sequence[str] = OWN) -> bool:
    """Correct the content of a tokenizer.json of Llama's kind. -> whether it was changed

    Args:
        values: is changed in place.
        legacy: as for `build`.
        proto: the sentencepiece model beside it; its scores order the merges.
        own: the special tokens of its sentencepiece model.
    """
    before = copy.deepcopy({key: values.get(key) for key in (*_STEPS, "added_tokens")})
    ends = [token for token in values["added_tokens"] if token["content"] in own and token["special"]]
    bare = [] if legacy else [token["content"] for token in ends]
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    steps += [normalizers.Replace(Regex(_unprefixed(bare)), "")] if bare else []
    scratch = Tokenizer(BPE())
    scratch.normalizer, scratch.decoder = normalizers.Sequence(steps), _decoder()
    made = json.loads(scratch.to_str())
    values |= {key: made[key] for key in _STEPS}
    for token in ends:
        token["normalized"] = not legacy
    changed = before != {key: values.get(key) for key in before}
    return _mend_merges(values["model"], proto) or changed


def _mend_merges(model: dict[str, Any], proto: Any | None) -> bool:
    have = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if proto is not None:
        pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
        wanted = merges_by_score(proto) if pieces.items() <= model["vocab"].items() else have
    elif (
        have[:1] == [(SPACE, SPACE)] and model["vocab"].get(2 * SPACE) == 259
    ):  # Llama's vocabulary, without its scores
        runs = [merge for merge in have if not "".join(merge).strip(SPACE)]
        runs.sort(key=lambda merge: (-len(merge[0]), -len(merge[1])))
        wanted = [merge for merge in have if "".join(merge).strip(SPACE)] + runs
    else:
        wanted = have
    model["merges"] = [list(merge) for merge in wanted]
    return wanted != have
