"""The commands of docs/data.md do what it says: as they stand, in a folder with a tiny copy of everything they name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from data.file_server import FileServer, make_zip, picture, serve_files

from llava_prumerge.data import footprint, prepare
from llava_prumerge.data.conversation import MaskError
from llava_prumerge.data.download import SOURCES
from playground.pocket import records as pocket

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    for line in block.splitlines()
]
PREPARE = "python -m llava_prumerge.data.prepare "
ELSEWHERE = {"bash scripts/finetune_lora.sh", "python -m llava_prumerge.data.footprint"}  # tests/train, and below


def serve_sources(server: FileServer, folder: Path) -> dict[str, Any]:
    """sources.yaml with every address on loopback, and something small behind each."""
    sources = yaml.safe_load(SOURCES.read_text())
    for file in (file for one in sources.values() for file in one.get("files", ())):
        path = f"/{urlsplit(file['url']).hostname}{urlsplit(file['url']).path}"
        file["url"] = server.url(path)
        if "unpack_to" in file:
            name = Path(file["unpack_to"]).name
            prefix = "00001/" if name == "images" and "Pretrain" in path else f"{name}/"
            server.files[path] = make_zip(folder / "made.zip", {"1.jpg": picture()}, prefix).read_bytes()
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a red circle"}]
    folders = ("coco/train2017", "gqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2", "ocr_vqa/images")
    mix = [{"id": name, "image": f"{name}/1.jpg", "conversations": turns} for name in folders]
    captions = [{"id": "c", "image": "00001/1.jpg", "conversations": turns}]
    for path in (
        "LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json",
        "LLaVA-Pretrain/resolve/main/blip_laion_cc_sbu_558k.json",
    ):
        content = mix if "mix" in path else captions
        server.files[f"/huggingface.co/datasets/liuhaotian/{path}"] = json.dumps(content).encode()
    server.files["/cover.jpg"] = picture()
    return sources


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LLAVA_PRUMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    pocket.build(tmp_path / "playground" / "pocket" / "data", stage1=8, stage2=8, workers=1)
    backbones = ROOT / "playground" / "pocket" / "backbones"
    (tmp_path / "playground" / "pocket" / "backbones").symlink_to(backbones)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vicuna-7b-v1.5").symlink_to(backbones / "lm")
    (tmp_path / "checkpoints" / "clip-vit-large-patch14-336").symlink_to(backbones / "clip")
    with serve_files() as server:
        path = tmp_path / "sources.yaml"
        path.write_text(yaml.safe_dump(serve_sources(server, tmp_path)))
        monkeypatch.setattr(prepare, "SOURCES", path)
        books = tmp_path / "playground" / "data" / "ocr_vqa"
        books.mkdir(parents=True)
        (books / "dataset.json").write_text(json.dumps({"1": {"imageURL": server.url("/cover.jpg")}}))
        yield tmp_path


def test_every_command_works(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    for command in COMMANDS:
        if command not in ELSEWHERE:
            assert command.startswith(PREPARE.strip())
            assert prepare.main(shlex.split(command.removeprefix(PREPARE.strip()))) == 0, command
            ran.append(command)
    out = capsys.readouterr().out
    assert len(ran) == 7 and len(ran) + len(ELSEWHERE) == len(COMMANDS)
    assert "6 records, 0 bad; the sound ones: 6 images" in out, "what download fetched is what the recipe names"
    assert "llava_pretrain" in out and "8 sound records written to clean.json" in out
    assert json.loads((workplace / "report.json").read_text())["records"] == 8
    assert (workplace / "playground" / "data" / "LLaVA-Pretrain" / "images" / "00001" / "1.jpg").is_file()


def test_the_table_of_faults_is_complete() -> None:
    """Every kind that the code can report is in it."""
    kinds = set()
    for name in ("conversation", "images", "image_paths", "records", "record_check", "rounds"):
        source = (ROOT / "llava_prumerge" / "data" / f"{name}.py").read_text(encoding="utf-8")
        kinds |= set(re.findall(r'(?:MaskError|ImageError|RecordError)\(\s*f?"([a-z ]+):', source))
        kinds |= set(re.findall(r'Finding\("([a-z ]+)"', source))
        kinds |= set(re.findall(r'notes\.append\(\("([a-z0-9 -]+)"', source))
        kinds |= set(re.findall(r'notes.*f"([a-z ]+): ', source))
    assert len(kinds) > 25 and MaskError("role: x").kind in kinds
    missing = {kind for kind in kinds if f"`{kind}`" not in DOCUMENT}
    assert not missing


@pytest.mark.slow
def test_memory_per_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """665,298 records cost a rank less than 200 MB of its own; as Python objects a tenth of them costs more."""
    assert footprint.main(["--folder", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["records"] == 665_298 and found["file_mb"] > 900 and found["rows_read"] == 20_000
    assert max(growth["private"] for growth in found["growth_mb"].values()) < 200
    assert found["objects"]["records"] == 66_530 and found["objects"]["private_mb"] > 200
    assert found["convert"]["peak_resident_mb"] < 500
