"""The recipe's and the evaluation's `tower_cache`: the same weights to the bit, and the tower runs once per image."""

from __future__ import annotations

from safetensors.torch import load_file

from llava_prumerge.model import vision_tower
from llava_prumerge.train.run import main


def test_a_run_reads_what_an_earlier_one_has_made(world, tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    run_blocks = vision_tower._run_blocks

    def counted(tower, pixel_values, depth):
        seen.append(len(pixel_values))
        return run_blocks(tower, pixel_values, depth)

    monkeypatch.setattr(vision_tower, "_run_blocks", counted)
    weights, cost = [], []
    for name, more in (
        ("without", {}),
        ("first", {"tower_cache": str(tmp_path / "c")}),
        ("second", {"tower_cache": str(tmp_path / "c")}),
    ):
        seen.clear()
        recipe = world.recipe("projector", tmp_path / name, **more, max_steps=4, save_steps=2)
        assert main([*recipe, world.prumerge_plus]) == 0
        weights.append(load_file(tmp_path / name / "mm_projector.safetensors"))
        cost.append(sum(seen))
    assert cost == [16, 16, 0], "four steps of four samples, one epoch of sixteen images"
    for other in weights[1:]:
        assert all((other[name] == tensor).all() for name, tensor in weights[0].items())


def test_zero_3_is_refused(world, tmp_path, capsys) -> None:
    recipe = world.recipe("projector", tmp_path / "run", deepspeed="zero3", tower_cache=str(tmp_path / "cache"))
    assert main(recipe) == 2
    assert "tower_cache=" in (told := capsys.readouterr().err) and "not under ZeRO-3" in told
