"""Conversation templates, as LLaVA prints them, and as the chat templates that transformers keeps beside a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llava_prumerge.ground.errors import InputError

IMAGE_MARKER, VIDEO_MARKER = "<image>", "<video>"
DEFAULT = "vicuna_v1"

Round = tuple[str, str | None]

_SHOWN_IMAGES = re.compile(f"(?:{IMAGE_MARKER}\\n?)*")
_SHOWN_MEDIA = re.compile(f"(?:(?:{IMAGE_MARKER}|{VIDEO_MARKER})\\n?)*")
_MARKERS = re.compile(f"{IMAGE_MARKER}|{VIDEO_MARKER}")


class NoPlaceError(InputError):
    """A system text for a template that has no place for one."""


def is_blank(text: str) -> bool:
    """Whether a turn says nothing."""
    return not text.strip()


def shown_images(question: str) -> int:
    """Where the image markers at the front of a question end."""
    found = _SHOWN_IMAGES.match(question)
    return found.end() if found else 0


def shown_media(question: str) -> tuple[tuple[str, ...], int]:
    """Markers of images and videos at the front of a question. -> "image" or "video" for each, and where they end"""
    found = _SHOWN_MEDIA.match(question)
    end = found.end() if found else 0
    return tuple(media_kinds(question[:end])), end


def media_kinds(text: str) -> list[str]:
    """ "image" or "video" for each marker in a text, in order."""
    return [marker.strip("<>") for marker in _MARKERS.findall(text)]


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation.

    Attributes:
        text: the piece.
        supervised: whether the loss falls on it.
        written: whether it comes from a record, and not from the template: then nothing in it is a control token.
    """

    text: str
    supervised: bool
    written: bool = False


@dataclass(frozen=True)
class Template:
    """The text around questions and answers, exactly as LLaVA prints it.

    Args:
        name: key in `TEMPLATES`.
        opening: before the first question, the system text included.
        reopening: before every later question.
        closing: between a question and its answer; ends where the model is left to speak.
        lead: between `closing` and the answer, already the model's to say (Vicuna's space), so it carries loss.
        end: after the answer; carries loss.
        captions: the question is dropped but for its images, which stand without a line break (stage 1).
        system: the part of `opening` that another system text may replace; empty where there is none.
    """

    name: str
    opening: str
    reopening: str
    closing: str
    lead: str
    end: str
    captions: bool = False
    system: str = ""
    marker: ClassVar[str] = IMAGE_MARKER

    def segments(self, rounds: Sequence[Round], system: str | None = None) -> list[Segment]:
        """Lays out rounds of (question, answer); an answer of None ends the text where generation starts.

        Raises:
            NoPlaceError: a system text is given, and the template has no place for one.
        """
        pieces: list[Segment] = []
        for number, (question, answer) in enumerate(rounds):
            if answer is None and number != len(rounds) - 1:
                raise InputError(f"only the last answer may be None, but answer {number + 1} of {len(rounds)} is")
            shown = shown_images(question)
            pieces += self._opened(system) if not number else [Segment(self.reopening, False)]
            pieces.append(Segment(question[:shown], False))
            pieces += [Segment(question[shown:], False, written=True), Segment(self.closing, False)]
            if answer is not None:
                learnt = self.captions or not is_blank(answer)  # not to say nothing
                pieces += [Segment(self.lead, learnt), Segment(answer, learnt, written=True), Segment(self.end, learnt)]
        return pieces

    def _opened(self, system: str | None) -> list[Segment]:
        """What stands before the first question, with a record's system text in the place of the template's."""
        if system is None:
            return [Segment(self.opening, False)]
        if not self.system:
            raise NoPlaceError(f"template {self.name!r} has no place for a system text")
        before, _, after = self.opening.partition(self.system)
        return [Segment(before, False), Segment(system, False, written=True), Segment(after, False)]

    def render(self, rounds: Sequence[Round]) -> str:
        """Same as `segments`, as one string."""
        return "".join(segment.text for segment in self.segments(rounds))


def _vicuna(name: str, human: str) -> Template:
    system = (
        f"A chat between a curious {human} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {human}'s questions."
    )
    return Template(name, f"{system} USER: ", "USER: ", " ASSISTANT:", " ", "</s>", system=system)


def _chatml(name: str, system: str) -> Template:
    user, assistant, end = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
    opening = f"<|im_start|>system\n{system}{end}{user}"
    return Template(name, opening, user, end + assistant, "", end, system=system)


_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("plain", "", "", "", "", "\n", captions=True),
        _vicuna("vicuna_v1", "user"),
        _vicuna("llava_v1", "human"),
        Template(
            "llava_llama_2",
            f"[INST] <<SYS>>\n{_LLAMA_2_SYSTEM}\n<</SYS>>\n\n",
            "<s>[INST] ",
            " [/INST]",
            " ",
            " </s>",
            system=_LLAMA_2_SYSTEM,
        ),
        Template("mistral_instruct", "[INST] ", "[INST] ", " [/INST]", " ", " </s>"),
        _chatml("mpt", _MPT_SYSTEM),
        _chatml("chatml_direct", "Answer the questions."),
    )
}
_ALIASES = {"v1": "vicuna_v1"}


def get_template(name: str | Template) -> Template:
    """Finds a template by name; an unknown name is an error, where LLaVA falls back to Vicuna's."""
    if isinstance(name, Template):
        return name
    key = _ALIASES.get(name, name)
    if key not in TEMPLATES:
        raise InputError(f"unknown template {name!r}; known: {', '.join(sorted([*TEMPLATES, *_ALIASES]))}")
    return TEMPLATES[key]


# Images stand before the text of their turn. Content is a string, or a list of {"type": "image"} and {"type": "text",
# "text": ...}. Where a text holds image markers itself they move to its front, as `place_images` does in training.
_JINJA = """
{%- set ns = namespace(opening=OPENING, next='user') -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set text, images = message['content'], 0 -%}
  {%- else -%}
    {%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}
    {%- set images = message['content'] | selectattr('type', 'in', ['image', 'image_url']) | list | length -%}
  {%- endif -%}
  {%- if message['role'] == 'system' -%}
    {%- if not loop.first -%}{{- raise_exception('the system message must be the first') -}}{%- endif -%}
    SYSTEM
  {%- elif message['role'] != ns.next -%}
    {{- raise_exception('messages must alternate between user and assistant, beginning with user') -}}
  {%- elif message['role'] == 'user' -%}
    {%- set marks = text.count('<image>') -%}
    {%- if marks -%}
      {%- set text = text.replace('<image>', '') | trim -%}
    {%- endif -%}
    {%- set images = [images, marks] | max -%}
    {%- set question = QUESTION -%}
    {{- ns.opening + (question | trim if marks else question) -}}
    {%- set ns.opening = REOPENING -%}
    {%- set ns.next = 'assistant' -%}
  {%- else -%}
    {{- CLOSING + LEAD + text + END -}}
    {%- set ns.next = 'user' -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.next == 'assistant' -%}{{- CLOSING -}}{%- endif -%}
"""


def is_ours(source: object) -> bool:
    """Whether a chat template in Jinja was made by `chat_template`, with whatever system text."""
    return isinstance(source, str) and source.startswith(_JINJA.strip().partition("OPENING")[0])


def chat_template(name: str | Template) -> str:
    """A template in Jinja, for `apply_chat_template`; what it renders is `Template.render` of the same turns.

    A system message takes the place of the template's own. Without the beginning of sequence, which processors put.
    """
    template = get_template(name)
    before, system, after = template.opening.partition(template.system) if template.system else ("", "", "")
    if system:
        place = f"{{%- set ns.opening = {json.dumps(before)} + text + {json.dumps(after)} -%}}"
    else:
        place = f"{{{{- raise_exception('the template {template.name} has no place for a system message') -}}}}"
    question = "'<image>' * images" if template.captions else "'<image>\\n' * images + text"
    parts = {"SYSTEM": place, "QUESTION": question}
    parts |= {
        key.upper(): json.dumps(getattr(template, key)) for key in ("reopening", "opening", "closing", "lead", "end")
    }
    text = _JINJA.strip()
    return re.sub("|".join(rf"\b{key}\b" for key in parts), lambda found: parts[found[0]], text)
