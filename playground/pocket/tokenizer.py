"""Builds the pocket language model's tokenizer: Llama's conventions, one token per word of the pocket world.

As in Llama's: a space is "▁" and one is put before the text, <unk> <s> </s> are 0 1 2, the 256 bytes follow, and whatever is in
no token is spelt in bytes, so every text can be encoded. <image> and <pad> are added tokens at the end, as in llava-hf.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
ADDED = ("<image>", "<pad>")
PIECE = re.compile(r"▁?[A-Za-z]+|▁?[0-9]+|'s|[^\w\s]")
VOCABULARY = 640  # the model's embedding: the tokens below, padded to a multiple of 64


def train(texts: Iterable[str], least: int = 3) -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose tokens are the words of `texts` that occur at least `least` times.

    All words have one score, far above the letters', so that a known word is always one token and an unknown one is spelt. They are
    numbered in alphabetical order: what the texts say how often changes no token's number.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for special in (*SPECIAL, *ADDED):
            text = text.replace(special, "\n")
        for line in text.split("\n"):
            counts.update(PIECE.findall(line.replace(" ", "▁")))
            counts.update(PIECE.findall(("▁" + line).replace(" ", "▁")))
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    words = sorted(word for word, n in counts.items() if n >= least and word not in letters)
    pieces: list[tuple[str, float]] = [(name, 0.0) for name in SPECIAL]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(word, -10.0) for word in words]
    pieces += [(letter, -40.0) for letter in letters]
    if len(pieces) + len(ADDED) > VOCABULARY:
        raise ValueError(f"{len(pieces)} pieces do not fit a vocabulary of {VOCABULARY}; raise `least` above {least}")
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*SPECIAL, *ADDED)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
