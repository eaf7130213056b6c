"""Chat templates in Jinja, changed before they are used: a text model's gets places for images, any gets a system text."""

from __future__ import annotations

import json
from typing import Any

from llava_prumerge.text.templates import IMAGE_MARKER

_HEAD = "{#- a text model's own template, with places for images -#}\n"
_PARTS = """
{%- set seen = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['content'] is string or message['content'] is none -%}
    {%- set seen.messages = seen.messages + [message] -%}
  {%- else -%}
    {%- set images = message['content'] | selectattr('type', 'in', ['image', 'image_url']) | list | length -%}
    {%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}
    {%- set seen.messages = seen.messages + [dict(message, content='<image>\\n' * images + text)] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = seen.messages -%}
"""
# Thoughts are no part of the records, and an answer that is asked for must begin as the answers that were learnt.
_PLAINLY = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}\n"


def with_images(source: str) -> str:
    """A text model's chat template for messages whose content is a list of images and text; images stand ahead.

    A template that writes `<image>` has its own places for them.
    """
    return source if IMAGE_MARKER in source else _HEAD + _PLAINLY + _PARTS.strip() + "\n" + source


def with_system(source: str, system: str) -> str:
    """The same for conversations that begin without a system text: they get this one."""
    first = f"[{{'role': 'system', 'content': [{{'type': 'text', 'text': {json.dumps(system)}}}]}}]"
    told = f"{{%- if not messages or messages[0]['role'] != 'system' -%}}{{%- set messages = {first} + messages -%}}{{%- endif -%}}\n"
    if told in source:
        return source
    head = _HEAD if source.startswith(_HEAD) else ""
    return head + told + source.removeprefix(_HEAD)


def is_text_models(source: Any) -> bool:
    """Whether a template is a text model's own, given places for images by `with_images`."""
    return isinstance(source, str) and source.startswith(_HEAD)
