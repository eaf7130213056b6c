"""What an answer file says of the template is what the model is asked with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_llava import tiny_processor, write_processor

from llava_prumerge.model.template_files import stored_template, template_in_use
from llava_prumerge.text.chat_templates import asked_with
from llava_prumerge.text.templates import TEMPLATES, chat_template

STRANGE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


def write(folder: Path, source: str | None, file: str) -> None:
    write_processor(folder)
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    if file == "chat_template.jinja":
        (folder / file).write_text(source or "")
    elif source is not None:
        path = folder / file
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | {"chat_template": source}))


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_one_of_ours_is_told_by_name(name: str, file: str, tmp_path: Path) -> None:
    source = chat_template(TEMPLATES[name])
    write(tmp_path, source, file)
    assert stored_template(tmp_path) == source
    processor = tiny_processor()
    processor.chat_template = source
    assert template_in_use(str(tmp_path), "prumerge_llava", "vicuna_v1") == asked_with("vicuna_v1", processor).name


def test_another_family_is_told_by_a_hash_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, STRANGE, "chat_template.jinja")
    told = template_in_use(str(tmp_path), "qwen2_vl", "vicuna_v1")
    assert told.startswith("own ") and len(told) == 20
    write(tmp_path, STRANGE + " ", "chat_template.jinja")
    assert template_in_use(str(tmp_path), "qwen2_vl", "vicuna_v1") != told
    assert template_in_use(str(tmp_path), "llava", "vicuna_v1") == "vicuna_v1"  # LLaVA's way, as it was trained
    assert template_in_use(str(tmp_path), "llava", "plain") == "plain"


def test_nothing_beside_the_model_and_the_hub(tmp_path: Path) -> None:
    write(tmp_path, None, "tokenizer_config.json")
    assert template_in_use(str(tmp_path), "llava", "vicuna_v1") == "vicuna_v1"
    assert template_in_use("someone/model", None, "vicuna_v1") == "vicuna_v1"
