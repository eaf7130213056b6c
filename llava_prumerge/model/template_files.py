"""The chat template that lies beside a model: Jinja that transformers can compile, checked when it is read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.reading import read_text
from llava_prumerge.model.weight_files import LoadingError

NEW_FILE, OLD_FILE = "chat_template.jinja", "chat_template.json"
_BYTE_ORDER_MARK = "\ufeff"

logger = logging.getLogger(__name__)


def checked_template(template: Any, path: str | Path) -> Any:
    """A chat template as transformers has read it, text or texts by name, without a byte order mark; None for none.

    transformers would render the mark, and meet a mistake in Jinja with the first prompt.

    Args:
        template: as read.
        path: the model's folder or name, for messages.

    Raises:
        LoadingError: it is neither text nor texts by name, or not Jinja as transformers reads it.
    """
    if isinstance(template, dict):
        return {name: checked_template(one, path) for name, one in template.items()}
    if template is None:
        return None
    if not isinstance(template, str):
        raise LoadingError(f"{path}: its chat template must be text, found {shown(template)}")
    template = template.removeprefix(_BYTE_ORDER_MARK)
    _compile(template, path)
    _warn_of_another(template, Path(path))
    return template


def _compile(template: str, path: str | Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([], chat_template=template)  # compiled, of no conversation
    except (TemplateError, RecursionError, ValueError) as error:
        line = getattr(error, "lineno", None)
        told = " ".join(str(error).split())[:200] or type(error).__name__
        at = f"line {line}: " if line else ""
        raise LoadingError(f"{path}: its chat template is not valid Jinja: {at}{told}") from error


def _warn_of_another(template: str, folder: Path) -> None:
    """Say that a chat_template.jinja is not read, where transformers takes the older chat_template.json beside it."""
    new, old = folder / NEW_FILE, folder / OLD_FILE
    if new.is_file() and old.is_file() and read_text(new).strip() != template.strip():
        logger.warning("%s is not read: %s beside it says otherwise; remove one of them", new, old.name)
