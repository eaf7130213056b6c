"""Llama-style tokenizers small enough to be predicted by hand, and images written where a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_WORDS = (  # Vicuna's system text and a few to talk with
    "▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant ▁The ▁gives ▁helpful ▁detailed "
    "▁polite ▁answers ▁to ▁the ▁questions ▁USER ▁ASSISTANT ▁red ▁cat ▁dog ▁yes ▁two"
)
_CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!'[]/<>_|"


def _spell(words: Iterable[str] = (), scheme: str = "prepend") -> PreTrainedTokenizerFast:
    """A BPE with Llama's normaliser and byte fallback whose only merges spell words from the left.

    So "▁cat" is one token where it is known, and any other word is its longest known beginning followed by characters.

    Args:
        words: known beside Vicuna's, written with "▁" for the space before them.
        scheme: "prepend" sets a "▁" before every text, also after a special token (Llama's legacy form); "first" before
            the first text only.
    """
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_CHARACTERS]
    merges = [(word[:i], word[i]) for word in [*_WORDS.split(), *words] for i in range(1, len(word))]
    vocabulary += ["".join(merge) for merge in merges]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    bpe = models.BPE(
        vocab=ids, merges=list(dict.fromkeys(merges)), byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    return _wrap(Tokenizer(bpe), scheme)


def _wrap(core: Tokenizer, scheme: str = "prepend") -> PreTrainedTokenizerFast:
    """Gives a BPE Llama's spaces, special tokens and BOS."""
    if scheme == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


@pytest.fixture(scope="session")
def spell_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return _spell


@pytest.fixture(scope="session")
def wrap_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return _wrap


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    return _spell()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def save_image(tmp_path: Path) -> Callable[..., Path]:
    """Writes a noisy image under `tmp_path/images`."""

    def save(name: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(path, **options)
        return path

    return save
