"""The text that images are about, for methods that read the prompt: its embeddings, or its words in CLIP's space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_prumerge.model.errors import ModelError
from llava_prumerge.model.text_side import TextSide, words_of
from llava_prumerge.ops.layout import IGNORE_INDEX, TokenLayout
from llava_prumerge.text.content_words import content_words, question_of
from llava_prumerge.text.tokenizers import TokenizerError, load_tokenizer

logger = logging.getLogger("model")


@dataclass(frozen=True)
class Asked:
    """The text that images are about, for methods that read the prompt: [B, L] each."""

    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor | None


class AskedText:
    """Part of `model.host.Host`.

    Attributes:
        words: the model's tokenizer, which says what was asked; None: it is looked for where the model is from.
    """

    config: Any
    reducer: Any
    words: Any = None
    _looked: bool = False
    _asked: Asked | None
    _text_side: TextSide | None = None

    if TYPE_CHECKING:

        def placeholders(self, input_ids: Tensor) -> Tensor:
            """See `Host`."""

        def get_input_embeddings(self) -> Any:
            """The stock model's."""

    @contextmanager
    def asking(self, input_ids: Tensor | None, attention_mask: Any, labels: Tensor | None = None) -> Iterator[None]:
        """While images are encoded, the text they are about can be asked for."""
        before = self._asked
        mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        self._asked = None if input_ids is None else Asked(input_ids, mask, labels)
        try:
            yield
        finally:
            self._asked = before

    def _read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, L], where their text is that may be read, and where anything is. [B, L] bool"""
        asked = self._asked
        if asked is None:
            raise ModelError(
                f"{self.reducer.name} reads the prompt: encode images in forward or generate, which know it"
            )
        ids = asked.input_ids
        mask = torch.ones_like(ids, dtype=torch.bool) if asked.attention_mask is None else asked.attention_mask
        key_mask = mask[:, -ids.shape[1] :].bool()
        spots = self.placeholders(ids)
        text = key_mask & ~spots
        if asked.labels is not None:  # a method that saw the answer in training would miss it in use
            text &= asked.labels == IGNORE_INDEX
            text[:, 0] = key_mask[:, 0] & ~spots[:, 0]
        return ids, text, key_mask

    def _rows(self, ids: Tensor, images: Tensor, lengths: Sequence[int], modality: str) -> Tensor:
        """The sequence that each of some images [N] stands in. [N]"""
        rows = (ids == getattr(self.config, f"{modality}_token_id")).nonzero()[:, 0]
        counts = torch.tensor(lengths, device=rows.device)
        owner = rows[counts.cumsum(0) - counts] if len(rows) else rows.new_zeros(len(counts))  # a blank image has none
        return owner[images.to(owner.device)]

    def prompts(self, images: Tensor, lengths: Sequence[int], modality: str) -> tuple[Tensor, Tensor]:
        """For tiles of images [N] the text of their sequences, without what is to be predicted. -> [N, T, D], [N, T]"""
        ids, text, key_mask = self._read()
        spots = self.placeholders(ids)
        blank = torch.zeros_like(ids)
        layout = TokenLayout(is_image=spots, key_mask=key_mask, position_ids=blank, origin=blank)
        moved: Any
        layout, moved = layout.compact(text, self.get_input_embeddings()(ids.masked_fill(spots, 0)))
        owner = self._rows(ids, images, lengths, modality)
        return moved[owner], layout.key_mask[owner]

    def _said(self) -> tuple[Tensor, list[str]]:
        """Ids [B, L], and the question of each sequence in words: what follows its last image, or all of its text."""
        ids, text, _ = self._read()
        before, after = (getattr(self.reducer.settings, name, 0) for name in ("before", "after"))
        later = text & (self.placeholders(ids).flip(1).cumsum(dim=1).flip(1) == 0)
        said = []
        for row, behind, anywhere in zip(ids, later, text, strict=True):
            rows = row[behind].tolist(), row[anywhere].tolist()[before:]
            texts = [self.words.decode(one[: len(one) - after], skip_special_tokens=True) for one in rows]
            said.append(question_of(texts[0]) or question_of(texts[1]))
        return ids, said

    def question(
        self, images: Tensor, lengths: Sequence[int], modality: str
    ) -> Callable[[], tuple[Tensor, Tensor]] | None:
        """For `VisionTokens.question`: embeddings of the words that tiles of images [N] are asked about.

        None where the tokenizer is not known; a method that asks for words then says so once. Costs a host synchronisation.
        """
        if not self.reducer.reads_prompt:
            return None
        if self.reducer.wants_words:
            self._look_for_words()
        if self.words is None:
            return None

        def asked() -> tuple[Tensor, Tensor]:
            ids, said = self._said()
            words = [" ".join(content_words(text) or ["?"]) for text in said]
            made = [self.words(text, add_special_tokens=False)["input_ids"] for text in words]
            rows = [torch.tensor(row, device=ids.device) for row in made]
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
            embeddings = self.get_input_embeddings()(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
            owner = self._rows(ids, images, lengths, modality)
            return embeddings[owner], mask[owner]

        return asked

    def _look_for_words(self) -> None:
        """Find the tokenizer in the folder that the model was loaded from, if nobody gave it."""
        if self.words is not None or self._looked:
            return
        self._looked = True
        source = Path(getattr(self.config, "name_or_path", "") or "")
        if source.name and source.is_dir():
            try:
                self.words = load_tokenizer(source)
            except TokenizerError as error:
                logger.warning("%s", error)
        if self.words is None:
            logger.warning(
                "%s reads the question's words, and nobody told it this model's tokenizer: attach(model, ..., tokenizer=processor). "
                "Unless it needs them it now takes all prompt tokens, which is another rule",
                self.reducer.name,
            )

    def clip_side(
        self, features: Tensor, images: Tensor, lengths: Sequence[int], modality: str
    ) -> Callable[[], tuple[Tensor, Tensor, Tensor]] | None:
        """For `VisionTokens.clip`: tower features [N, P, C] and their questions in CLIP's space; None without it.

        Costs a host synchronisation: words are made of ids on the host.
        """
        settings = self.reducer.settings
        folder = getattr(settings, "clip", None)
        if folder is None or settings.space == "llm":
            return None

        def sides() -> tuple[Tensor, Tensor, Tensor]:
            if self._text_side is None or self._text_side.path != folder:
                self._text_side = TextSide(folder)
            if self.words is None:
                self.words = words_of(self.config)
            ids, said = self._said()
            embeddings, real = self._text_side.texts(said, features.device)
            owner = self._rows(ids, images, lengths, modality).to(features.device)
            return self._text_side.patches(features), embeddings[owner], real[owner]

        return sides
