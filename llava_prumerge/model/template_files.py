"""The chat template that lies beside a model: Jinja that transformers can compile, checked when it is read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from llava_prumerge.ground.naming import shown
from llava_prumerge.ground.reading import read_json_object, read_text
from llava_prumerge.model.families import MAIN, stock_type
from llava_prumerge.model.weight_files import LoadingError
from llava_prumerge.text.chat_templates import told_template

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


def stored_template(folder: Path) -> str | None:
    """The chat template that transformers reads beside a model, from whichever file it is in; None for none."""
    if (folder / OLD_FILE).is_file():
        found = read_json_object(folder / OLD_FILE).get("chat_template")
    elif (folder / NEW_FILE).is_file():
        found = read_text(folder / NEW_FILE)
    else:
        files = [folder / name for name in ("processor_config.json", "tokenizer_config.json")]
        read = [read_json_object(path).get("chat_template") for path in files if path.is_file()]
        found = next((one for one in read if one), None)
    if isinstance(found, list):  # by name, as tokenizers write several
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found.removeprefix(_BYTE_ORDER_MARK) if isinstance(found, str) else None


def template_in_use(model: str, model_type: str | None, name: str) -> str:
    """What an answer file says of the template that a model is asked with; of one on the Hub, that of the settings.

    Args:
        model: folder, or name on the Hub.
        model_type: from its configuration.
        name: of the settings.
    """
    if not Path(model).is_dir():
        return name
    return told_template(name, stored_template(Path(model)), llava=stock_type(model_type or MAIN) == MAIN)


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
