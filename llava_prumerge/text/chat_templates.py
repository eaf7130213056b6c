"""The chat template that a model brings along, as pieces that carry loss and pieces that do not.

A template in Jinja is a program: it may strip what it is given, put a system text of its own first, or refuse a role.
So nothing is assumed of it. It is rendered once with marks in the place of texts, which shows what it writes around them,
and once with the texts themselves: both must agree, piece by piece. Where generation starts is what it says itself.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from llava_prumerge.ground.errors import InputError
from llava_prumerge.text.jinja_sources import is_text_models, with_images, with_system
from llava_prumerge.text.templates import (
    DEFAULT,
    IMAGE_MARKER,
    TEMPLATES,
    NoPlaceError,
    Round,
    Segment,
    Template,
    chat_template,
    get_template,
    is_blank,
    is_ours,
    shown_images,
    shown_media,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = "own"
"""The name that stands for the chat template a model brings along."""
LLAVA = "LlavaProcessor"
"""The processor of models that may have been put together from a text model."""

_OPEN, _CLOSE = "\ue000", "\ue001"  # around a mark's number; of the private use area, so no text has them
_PLACE = "system"  # among what is known of a template: whether it has a place for a system text
_CUTS = (str, str.strip, str.lstrip, str.rstrip, lambda text: text.strip("\n"), lambda text: text.lstrip("\n"))


class ChatTemplateError(InputError):
    """A chat template that cannot be trained with, or not with this text."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the interface of `templates.Template`.

    Attributes:
        source: in Jinja.
        tokenizer: renders it, and knows the control tokens.
        marker: what the template writes for an image.
        video_marker: what it writes for a video; None: the model takes none.
        end: the control token that ends an answer; it carries loss.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    marker: str = IMAGE_MARKER
    video_marker: str | None = None
    end: str = field(init=False)
    name: str = OWN
    captions: bool = False
    _known: dict[Any, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ChatTemplateError if answers have no end that generation could stop at, or images no place."""
        ahead, _, rest = self._around((((), True),))
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        tokens |= set(map(str, self.tokenizer.all_special_tokens))
        found = sorted((rest.find(token), -len(token), token) for token in tokens if token and token in rest)
        if not found:
            raise ChatTemplateError(
                f"the chat template ends answers with {rest!r}, which holds no control token to stop at"
            )
        object.__setattr__(self, "end", found[0][2])
        if ahead.count(self.marker) or self._around(((("image",), True),))[0].count(self.marker) != 1:
            raise ChatTemplateError(f"the chat template writes no {self.marker!r} for an image")

    def segments(self, rounds: Sequence[Round], system: str | None = None) -> list[Segment]:
        """As `Template.segments`. Loss falls on what stands behind the prompt for an answer, up to the answer's end.

        Raises:
            ChatTemplateError: the template makes something else of a text than the text itself, or refuses it.
            NoPlaceError: it has no place for a system text.
        """
        shown = [self._shown(question) for question, _ in rounds]
        media = [kinds for kinds, _ in shown]
        questions = [question[at:] for (question, _), (_, at) in zip(rounds, shown, strict=True)]
        answers = [answer for _, answer in rounds]
        if None in answers[:-1]:
            raise InputError("only the last answer may be None")
        if system is not None:
            self.check_system()
        shape = tuple((kinds, answer is not None) for kinds, answer in zip(media, answers, strict=True))
        said = system is not None
        texts = [text for pair in zip(questions, answers, strict=True) for text in pair if text is not None]
        texts = [system, *texts] if system is not None else texts
        whole = self._text(messages_of(zip(media, questions, answers, strict=True), system), answers[-1] is None)
        written = _cut(whole, self._around(shape, said), texts)
        if written is None:  # some templates write the day's date
            self._known.clear()
            written = _cut(whole, self._around(shape, said), texts)
        if written is None:
            raise ChatTemplateError("the chat template makes something else of a turn's text than the text itself")
        literals = self._around(shape, said)
        self._check_videos(literals, media)
        leads = [self._lead(media, number) for number, answer in enumerate(answers) if answer is not None]
        pieces = [Segment(literals[0], False)]
        if said:
            pieces += [Segment(written[0], False, written=True), Segment(literals[1], False)]
            written, literals = written[1:], literals[1:]
        for number, answer in enumerate(answers):
            pieces.append(Segment(written[2 * number], False, written=True))
            before = literals[2 * number + 1]
            if answer is None:
                pieces.append(Segment(before, False))
                continue
            learnt, lead = not is_blank(answer), _common(before, leads[number])
            behind = literals[2 * number + 2]
            if self.end not in behind:
                raise ChatTemplateError(f"the chat template ends an answer with {behind!r}, without {self.end!r}")
            stop = behind.index(self.end) + len(self.end)
            pieces += [Segment(before[:lead], False), Segment(before[lead:], learnt)]
            pieces += [Segment(written[2 * number + 1], learnt, written=True), Segment(behind[:stop], learnt)]
            pieces.append(Segment(behind[stop:], False))
        return [piece for piece in pieces if piece.text]

    def render(self, rounds: Sequence[Round]) -> str:
        """Same as `segments`, as one string; without the beginning of sequence where the tokenizer puts it."""
        return "".join(segment.text for segment in self.segments(rounds))

    def _shown(self, question: str) -> tuple[tuple[str, ...], int]:
        """What a question shows ahead of its text, and where that begins; without videos their marker is text."""
        if self.video_marker is not None:
            return shown_media(question)
        end = shown_images(question)
        return ("image",) * question.count(IMAGE_MARKER, 0, end), end

    def _check_videos(self, literals: Sequence[str], media: Sequence[Sequence[str]]) -> None:
        """What a template does not know it leaves out, or writes as something else."""
        wanted = sum(kinds.count("video") for kinds in media)
        if wanted and sum(literal.count(str(self.video_marker)) for literal in literals) != wanted:
            raise ChatTemplateError(f"the chat template writes no {self.video_marker!r} for a video")

    def check_system(self) -> None:
        """A template that does not know of system texts refuses one, leaves it out, or takes it for an answer.

        Raises:
            NoPlaceError: it is one of those.
        """
        if _PLACE not in self._known:
            mark = f"{_OPEN}s{_CLOSE}"
            told, answered = (messages_of([((), "question", None)], mark) for _ in range(2))
            answered[0]["role"] = "assistant"
            self._known[_PLACE] = self._refusals(told, answered, mark)
        for reason in self._known[_PLACE]:
            raise NoPlaceError(f"template {self.name!r}, the model's, has no place for a system text: {reason}")

    def _refusals(self, told: list[dict[str, Any]], answered: list[dict[str, Any]], mark: str) -> list[str]:
        """Why a text with that mark has no place; none where it has one. `answered` are the same messages with an answer for it."""
        try:
            text = self._text(told, True)
        except ChatTemplateError as error:
            return [str(error)]
        if text.count(mark) != 1:
            return [f"it writes it {text.count(mark)} times"]
        with contextlib.suppress(ChatTemplateError):
            if text == self._text(answered, True):
                return ["it takes it for an answer"]
        return []

    def _around(self, shape: tuple[tuple[tuple[str, ...], bool], ...], system: bool = False) -> list[str]:
        """What the template writes before, between and behind the texts of such rounds: (media, whether it is answered)."""
        if (shape, system) not in self._known:
            marks = iter(f"{_OPEN}{number}{_CLOSE}" for number in range(2 * len(shape) + 1))
            told = [next(marks)] if system else []
            rounds = [(kinds, next(marks), next(marks) if answered else None) for kinds, answered in shape]
            text = self._text(messages_of(rounds, *told), not shape[-1][1])
            pieces, position = [], 0
            for mark in told + [mark for _, *pair in rounds for mark in pair if mark]:
                if text.count(mark) != 1:
                    raise ChatTemplateError(f"the chat template writes a text {text.count(mark)} times")
                at = text.index(mark)
                if at < position:
                    raise ChatTemplateError("the chat template changes the order of the turns")
                pieces.append(text[position:at])
                position = at + len(mark)
            self._known[shape, system] = [*pieces, text[position:]]
        return self._known[shape, system]

    def _lead(self, media: Sequence[tuple[str, ...]], number: int) -> str:
        """What the template writes behind a question when it is asked for the answer."""
        shape = tuple((kinds, at < number) for at, kinds in enumerate(media[: number + 1]))
        return self._around(shape)[-1]

    def _text(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise ChatTemplateError(f"the chat template refuses it: {' '.join(str(error).split())}") from error
        bos = self.tokenizer.bos_token
        return text.removeprefix(bos) if bos and begins_with_bos(self.tokenizer) else text


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts the beginning of sequence ahead of every text itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def messages_of(rounds: Any, system: str | None = None) -> list[dict[str, Any]]:
    """Turns as a template takes them. `rounds`: kinds of media ahead of a question, the question, its answer or None."""
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for kinds, question, answer in rounds:
        parts = [{"type": kind} for kind in kinds] + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _cut(whole: str, literals: Sequence[str], texts: Sequence[str]) -> list[str] | None:
    """The texts as they stand in a rendering, stripped or not; None where it holds something else between the literals."""
    if not texts:
        return [] if whole == literals[0] else None
    if not whole.startswith(literals[0]):
        return None
    rest = whole[len(literals[0]) :]
    for text in dict.fromkeys(cut(texts[0]) for cut in _CUTS):
        found = _cut(rest[len(text) :], literals[1:], texts[1:]) if rest.startswith(text) else None
        if found is not None:
            return [text, *found]
    return None


def _common(text: str, start: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next(
        (at for at, (one, other) in enumerate(zip(text, start, strict=False)) if one != other),
        min(len(text), len(start)),
    )


def resolve_template(
    name: str | Template | ChatTemplate, processor: Any, system: str | None = None
) -> Template | ChatTemplate:
    """A template by name, or the one that comes with a processor or tokenizer.

    Args:
        name: one of `TEMPLATES`, or `OWN`.
        processor: knows the chat template and the tokenizer.
        system: takes the place of the template's own system text.

    Raises:
        InputError: there is none of that name, it has no place for a system text, or it does not fit the model.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    marker = getattr(processor, "image_token", None) or IMAGE_MARKER
    if isinstance(name, ChatTemplate):
        return name
    if name != OWN:
        template = get_template(name)
        if marker != IMAGE_MARKER:
            raise InputError(
                f"template {template.name!r} writes {IMAGE_MARKER} for an image, and this model reads {marker}: take {OWN!r}"
            )
        return template if system is None else spoken_by(template, system)
    source = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise InputError(
            f"template {OWN!r}: the model brings no chat template along; there are: {', '.join(sorted(TEMPLATES))}"
        )
    if processor is tokenizer or type(processor).__name__ == LLAVA:  # other processors come with a template for images
        source = with_images(source) if marker == IMAGE_MARKER else source
    video = getattr(processor, "video_token", None)
    if system is not None:
        ChatTemplate(source, tokenizer, marker, video).check_system()
    return ChatTemplate(source if system is None else with_system(source, system), tokenizer, marker, video)


def spoken_by(template: Template, system: str) -> Template:
    """A template with another system text.

    Raises:
        InputError: it has none.
    """
    if not template.system:
        raise InputError(f"template {template.name!r} has no place for a system text")
    return replace(template, opening=template.opening.replace(template.system, system), system=system)


def stored_template(template: Template | ChatTemplate) -> str:
    """A template in Jinja, to be kept beside a model that was trained with it."""
    return template.source if isinstance(template, ChatTemplate) else chat_template(template)


def template_of(processor: Any, default: str = DEFAULT) -> Template | ChatTemplate:
    """The template that a model is to be asked with: the one it was trained with, as far as its processor tells.

    A LLaVA-1.5 whose chat template is none of ours comes from elsewhere, and is asked as LLaVA asks.
    """
    source = getattr(processor, "chat_template", None) or getattr(processor, "tokenizer", processor).chat_template
    name = _named(source, type(processor).__name__ == LLAVA, default)
    return resolve_template(OWN, processor) if name == OWN else get_template(name)


def _named(source: str | None, llava: bool, default: str) -> str:
    """One of our templates by its chat template; the default where LLaVA's way is right; else "own"."""
    found = next((one.name for one in TEMPLATES.values() if source == chat_template(one)), None)
    if found is not None:
        return found
    from_elsewhere = llava and not (is_text_models(source) or is_ours(source))
    return default if from_elsewhere or not source else OWN


def told_template(name: str, source: str | None, llava: bool) -> str:
    """What a result says of the template that `asked_with` takes: its name, and for a model's own a hash of it.

    Args:
        name: of the settings.
        source: the chat template beside the model, if any.
        llava: its processor is LLaVA's.
    """
    name = _named(source, llava, DEFAULT) if name == DEFAULT else name
    return f"{name} {hashlib.sha256((source or '').encode()).hexdigest()[:16]}" if name == OWN else name


def asked_with(name: str, processor: Any) -> Template | ChatTemplate:
    """The template of a setting. The default gives way to the one that the model was trained with, see `template_of`."""
    return template_of(processor) if name == DEFAULT else resolve_template(name, processor)
