"""Tokenizers in and out: the one place that reads them, and that writes them so that every transformers release reads them.

A tokenizer of Llama's kind gives the ids that LLaVA's own code gives, whether its folder holds `tokenizer.model`,
`tokenizer.json` or both, written by whichever release. All others are transformers' business and pass through.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava_prumerge.ground.errors import InputError
from llava_prumerge.ground.files import write_json
from llava_prumerge.ground.public import PRIVATE
from llava_prumerge.ground.reading import read_json_object
from llava_prumerge.text.hub_files import folder_of
from llava_prumerge.text.sentencepiece_model import OWN, build, frame, mend, prefix_of, read_sentencepiece

LOGGER = logging.getLogger(__name__)
FAST_FILE, MODEL_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
BESIDE = ("special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE)
DROPPED = (*PRIVATE, "auto_map", "backend", "sp_model_kwargs")
LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
ENDS = ("unk_token", "bos_token", "eos_token")


class TokenizerError(InputError):
    """A tokenizer that cannot be read; the message names its folder."""


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a name on the Hub.

    Raises:
        TokenizerError: there is none, or it is damaged.
    """
    try:
        folder = Path(path)
        if not folder.is_dir():
            folder = folder_of(path)
        tokenizer = _read(folder)
    except Exception as error:  # odd values in its files make the libraries raise whatever they meet first
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TokenizerError(
            f"{path}: no tokenizer there can be read ({FAST_FILE} or {MODEL_FILE}): {reason}"
        ) from error
    tokenizer.name_or_path = str(path)
    for key in PRIVATE:
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def add_image_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer an image and a padding token, at the end of its vocabulary where it has none; others stay.

    A padding token that is also the end, the beginning or the unknown token is none: Llama's get one, as llava-hf's did.
    """
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token in (None, *(getattr(tokenizer, name) for name in ENDS)):
        tokenizer.add_tokens([PAD_TOKEN], special_tokens=True)
        tokenizer.pad_token = PAD_TOKEN


def _read(folder: Path) -> PreTrainedTokenizerBase:
    settings = _settings(folder)
    known = settings.get("tokenizer_class")
    if known is None or known in LLAMA or known in GENERIC:
        made = _of_llamas_kind(folder, settings)
        if made is not None:
            return _wrap(folder, *made)
    return AutoTokenizer.from_pretrained(folder)


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the class from config.json where it names none."""
    found: dict[str, Any] = {}
    for name in ("config.json", SETTINGS_FILE):
        if (folder / name).is_file():
            values = read_json_object(folder / name)
            found |= values if name == SETTINGS_FILE else {"tokenizer_class": values.get("tokenizer_class")}
    return found


def _of_llamas_kind(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Content of a right tokenizer.json and tokenizer_config.json; None where the folder's tokenizer is of another kind."""
    model = folder / MODEL_FILE
    proto = read_sentencepiece(model) if model.is_file() else None
    bos, eos = settings.get("add_bos_token") is not False, settings.get("add_eos_token") is True
    ends = {key: _content(settings.get(key)) or own for key, own in zip(ENDS, OWN, strict=True)}
    if (folder / FAST_FILE).is_file():
        values = read_json_object(folder / FAST_FILE)
        prefix = prefix_of(values)
        if prefix is None:
            return None
        legacy = settings.get("legacy")
        legacy = prefix in ("each", "always") if legacy is None or prefix == "bare" else legacy
        if mend(values, legacy, proto, tuple(ends.values())):
            LOGGER.info("%s: %s is read with the merges and spaces of LLaVA's own tokenizer", folder, FAST_FILE)
        vocabulary = values["model"]["vocab"]
        if settings.get("tokenizer_class") not in GENERIC or not values.get("post_processor"):
            scratch = Tokenizer.from_str(json.dumps(values))
            scratch.post_processor = frame(
                vocabulary, ends["bos_token"] if bos else None, ends["eos_token"] if eos else None
            )
            values = json.loads(scratch.to_str())
    elif proto is not None:
        legacy = settings.get("legacy") is not False
        values = json.loads(build(proto, legacy, bos, eos).to_str())
        vocabulary = values["model"]["vocab"]
    elif model.is_file() and settings.get("tokenizer_class") in LLAMA:
        raise TokenizerError(f"{MODEL_FILE} is damaged, or no sentencepiece model")
    else:
        return None
    defaults: dict[str, Any] = {key: token for key, token in ends.items() if token in vocabulary}
    defaults |= {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    given = {key: value for key, value in settings.items() if key not in (*DROPPED, "tokenizer_class")}
    known = {token["content"] for token in values["added_tokens"]}
    if "added_tokens_decoder" in given:  # those of tokenizer.json are right
        given["added_tokens_decoder"] = {
            number: token for number, token in given["added_tokens_decoder"].items() if token["content"] not in known
        }
    return values, defaults | given | {"legacy": legacy}


def _content(token: Any) -> str | None:
    """The text of a special token, which old files hold as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _wrap(folder: Path, values: dict[str, Any], settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """transformers' generic class around it: Llama's own would replace the normaliser."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)
        write_json(place / FAST_FILE, values, indent=None, sync=False)
        write_json(place / SETTINGS_FILE, settings, sync=False)
        return PreTrainedTokenizerFast.from_pretrained(place)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files for transformers 4.37 and later, with its chat template and without paths of this machine.

    transformers 5 alone would write a class that earlier releases do not know, a list that they read as a mapping, and
    merges as pairs.
    """
    tokenizer.save_pretrained(folder)
    make_portable(tokenizer, folder)


def make_portable(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Bring the files that transformers has written of a tokenizer into the form of `save_tokenizer`."""
    file = folder / SETTINGS_FILE
    values = read_json_object(file)
    for key in (*DROPPED, "added_tokens_decoder"):
        values.pop(key, None)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = values.pop("extra_special_tokens", None)
    if extra:
        values["extra_special_tokens" if isinstance(extra, dict) else "additional_special_tokens"] = extra
    values |= {"padding_side": tokenizer.padding_side, "model_input_names": list(tokenizer.model_input_names)}
    values["clean_up_tokenization_spaces"] = bool(values.get("clean_up_tokenization_spaces"))
    if isinstance(tokenizer.chat_template, str):  # releases before 4.50 know no chat_template.jinja
        values["chat_template"] = tokenizer.chat_template
    write_json(file, dict(sorted(values.items())), sync=False)
    _write_old_merges(folder / FAST_FILE)


def _write_old_merges(file: Path) -> None:
    """Write a tokenizer.json's merges as "left right", which every release of `tokenizers` reads, where no part holds a space."""
    if not file.is_file():
        return
    values = read_json_object(file)
    merges = values["model"].get("merges")
    if merges and isinstance(merges[0], list) and not any(" " in part for merge in merges for part in merge):
        values["model"]["merges"] = [" ".join(merge) for merge in merges]
        write_json(file, values, sync=False)
