"""Builds the pocket language model's tokenizer: Llama's conventions, one token per word of the pocket world.

As in Llama's: a space is "▁" and one is put before the text, <unk> <s> </s> are 0 1 2, the 256 bytes follow, and whatever is in
no token is spelt in bytes, so every text can be encoded. <image> and <pad> are added tokens at the end, as in llava-hf. The words
stand in words.txt, in the order of their ids: a change of the corpus must never renumber what a trained model knows.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
ADDED = ("<image>", "<pad>")
WORDS_FILE = Path(__file__).with_name("words.txt")
FIRST_WORD = 259  # the id of the first word, after the special tokens and the bytes
VOCABULARY = 640  # the model's embedding: the tokens below, padded to a multiple of 64
WORD_SCORE, LETTER_SCORE = -10.0, -40.0  # a known word is always one token; an unknown one is spelt


def build() -> PreTrainedTokenizerFast:
    """The tokenizer.

    Raises:
        ValueError: there are more words than the embedding has rows.
    """
    words = WORDS_FILE.read_text(encoding="utf-8").split("\n")[:-1]
    pieces: list[tuple[str, float]] = [(name, 0.0) for name in SPECIAL]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [(word, WORD_SCORE) for word in words]
    pieces += [(letter, LETTER_SCORE) for letter in ("▁", *(chr(code) for code in range(33, 127)))]
    if len(pieces) + len(ADDED) > VOCABULARY:
        raise ValueError(f"{len(pieces)} pieces do not fit a vocabulary of {VOCABULARY}")
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
