"""Methods equal their authors' released code on its outputs: kept tokens, order, positions, values, decoding steps."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_prumerge.methods.base import VisionTokens
from llava_prumerge.methods.registry import build_reducer

HERE = Path(__file__).resolve().parent
BASIC = [
    ("prumerge_adaptive_a", "prumerge", {}),
    ("prumerge_adaptive_b", "prumerge", {}),
    ("prumerge_plus_adaptive_a", "prumerge_plus", {}),
    ("prumerge_plus_adaptive_b", "prumerge_plus", {}),
    ("prumerge_fixed_ratio_batch2", "prumerge", {"ratio": "1/8"}),
]
STAGES: dict[str, Any] = {"layers": [1, 2, 3], "counts": [40, 20, 8]}
OFFICIAL = [
    ("prumerge_ratio_1_4_n64", "prumerge", {"ratio": "1/4"}),
    ("prumerge_adaptive_n64", "prumerge", {}),
    ("prumerge_batch3_pooled_n144", "prumerge", {"fence": "batch"}),
    ("prumerge_plus_adaptive_n64", "prumerge_plus", {}),
    ("prumerge_plus_adaptive_n144", "prumerge_plus", {}),
    ("prumerge_plus_ratio_1_8_batch2_n144", "prumerge_plus", {"ratio": "1/8"}),
    ("prumerge_plus_ratio_1_8_n576", "prumerge_plus", {"ratio": "1/8"}),
    ("prumerge_plus_ratio_1_10_n64", "prumerge_plus", {"ratio": "1/10"}),
    ("prumerge_plus_all_kept_n64", "prumerge_plus", {}),
    ("fastervlm_16_31", "fastervlm", {"budget": 16}),
    ("fastervlm_7_31", "fastervlm", {"budget": 7}),
    ("visionzip_14_4_31", "visionzip", {"budget": 18, "share": "14/18"}),
    ("visionzip_14_4_31", "visionzip", {"budget": 17, "share": "13/17"}),
    ("divprune_0.25_41", "divprune", {"keep_ratio": 0.25}),
    ("divprune_0.098_42", "divprune", {"keep_ratio": 0.098}),
    ("divprune_0.5_43", "divprune", {"keep_ratio": 0.5}),
    ("tome_24_51", "tome", {"budget": 40, "rounds": 1}),
    ("tome_32_51", "tome", {"budget": 32, "rounds": 1}),
    ("tome_24_52", "tome", {"budget": 40, "rounds": 1}),
    ("tome_32_52", "tome", {"budget": 32, "rounds": 1}),
    ("tome_12-12-12-12_51", "tome", {"budget": 16, "rounds": 4}),
    ("fastv_K2_32of64", "fastv", {"layer": 2, "keep_ratio": 0.5}),
    ("fastv_K1_16of64", "fastv", {"layer": 1, "keep_ratio": 0.25}),
    ("vtw_k2", "vtw", {"layer": 2}),
    ("pyramiddrop_1_2_3", "pyramiddrop", {"layers": [1, 2, 3], "keep_ratio": 0.5}),
    ("dart_K2_16", "dart", {"layer": 2, "keep_ratio": 0.25}),
    ("sparsevlm_v2_L0_L1_L2_40_20_8", "sparsevlm", STAGES),
    ("sparsevlm_v2_150_L0_L1_L2_70_35_12_301", "sparsevlm", {"layers": [1, 2, 3], "counts": [70, 35, 12]}),
    ("sparsevlm_v1_L0_L1_L2_40_20_8", "sparsevlm", {**STAGES, "version": "1.0"}),
    (
        "sparsevlm_v1_150_L0_L1_L2_70_35_12_320",
        "sparsevlm",
        {"version": "1.0", "layers": [1, 2, 3], "counts": [70, 35, 12]},
    ),
    ("vscan_decoder_L2_21", "vscan_decoder", {"layers": [2], "counts": [21]}),
]
FRONTIER = [  # of other authors, whose rule is one of these with such a setting
    ("vispruner_16_1.0_142", "fastervlm", {"budget": 16}),
    ("flowcut_16of64_231", "flowcut", {"budget": 16}),
    ("llavamini_compressor_1x1_212", "llava_mini", {}),
    ("llavamini_compressor_2x2_211", "llava_mini", {}),
    ("llavamini_1x1_221", "llava_mini", {}),
    ("llavamini_2x2_labels_222", "llava_mini", {}),
    ("hired_single_0.2_171", "fastervlm", {"budget": 12}),
    ("scope_16_111", "scope", {"budget": 16}),
    ("vispruner_24_0.5_141", "vispruner", {"budget": 24}),
    ("vispruner_16_1.0_142", "vispruner", {"budget": 16, "important_ratio": 1}),
    ("holov_24of144_121", "holov", {"budget": 24}),
    ("holov_overflow_36of144_124", "holov", {"budget": 36, "count": "released"}),
    ("vscan_encoder_96_101", "vscan", {"budget": 96}),
    ("vscan_merge_16_104", "vscan", {"budget": 16}),
    ("cdpruner_16_151", "cdpruner", {"budget": 16}),
    ("mmtok_16_131", "mmtok", {"budget": 16}),
    ("trim_0.25_181", "trim", {"ratio": 0.25}),
    ("hired_single_0.2_171", "hired", {}),
    ("hired_tiles_0.2_0.5_173", "hired", {}),
    ("prunesid_16of64_161", "prunesid", {"budget": 16}),
    ("trimtokenator_0.25_0.8_191", "trimtokenator", {}),
    ("sparsevlm_cluster_40to5_201", "dpc_knn", {"budget": 5, "neighbours": None, "order": "fitness"}),
    ("sparsevlm_rank_241", "sparsevlm", {"version": "first"}),
]
CASES = [*BASIC, *((f"official/{file}", method, settings) for file, method, settings in OFFICIAL)]
CASES += [(f"frontier/{file}", method, settings) for file, method, settings in FRONTIER]

_spec = importlib.util.spec_from_file_location("golden_compare", HERE / "compare.py")
assert _spec and _spec.loader
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)


def test_every_file_is_compared() -> None:
    found = {path.relative_to(HERE).with_suffix("").as_posix() for path in HERE.rglob("*.npz")}
    assert found - {"official/decoder_inputs", "open_clip"} == {file for file, _, _ in CASES}


@pytest.mark.parametrize("file, method, settings", CASES)
def test_equal_to_the_released_code(file: str, method: str, settings: dict[str, Any]) -> None:
    found = golden.compare(HERE / f"{file}.npz", method, **settings)
    largest = 2e-3 if "rounded_to_half" in " ".join(golden.read(HERE / f"{file}.npz")) else 1e-5
    assert found.equal and found.largest < largest and found.lines, "\n".join(found.lines)


@pytest.mark.parametrize("file, method, settings", BASIC[:4])
def test_single_images_in_a_batch_stay_equal(file: str, method: str, settings: dict[str, Any]) -> None:
    """The released code pools its threshold over the batch; ours gives each image what it would get alone."""
    one = golden.read(HERE / f"{file}.npz")
    two = golden.read(HERE / f"{BASIC[(BASIC.index((file, method, settings)) + 1) % 4][0]}.npz")
    projections = tuple(torch.cat([one[name], two[name]]) for name in ("queries_cls", "keys"))
    side = round(one["features"].shape[1] ** 0.5)
    both = VisionTokens(torch.cat([one["features"], two["features"]]), (side, side), projections=lambda: projections)
    features, valid, _ = build_reducer({"name": method, **settings})(both)
    kept = features[0][valid[0]]
    assert kept.shape == one["output"][0].shape
    torch.testing.assert_close(kept, one["output"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "file, method, settings",
    [
        ("prumerge_adaptive_a", "prumerge", {"neighbours": 31}),
        ("prumerge_adaptive_a", "prumerge", {"order": "raster"}),
        ("prumerge_adaptive_a", "prumerge_plus", {}),
        ("official/prumerge_batch3_pooled_n144", "prumerge", {}),
        ("official/divprune_0.098_42", "divprune", {"budget": 15}),
        ("official/visionzip_14_4_31", "visionzip", {"budget": 18, "share": "14/18", "class_token": False}),
        ("official/tome_12-12-12-12_51", "tome", {"budget": 16, "rounds": 4, "order": "raster"}),
        ("official/dart_K2_16", "dart", {"layer": 2, "keep_ratio": 0.25, "states": "plain"}),
        ("official/dart_K2_16", "dart", {"layer": 2, "keep_ratio": 0.25, "turns": "norm"}),
        ("official/dart_K2_16", "dart", {"layer": 2, "keep_ratio": 0.25, "count": "exact"}),
        ("official/pyramiddrop_1_2_3", "pyramiddrop", {"layers": [1, 2, 3], "keep_ratio": 0.4}),
        ("official/fastv_K2_32of64", "fastv", {"layer": 1, "keep_ratio": 0.5}),
        ("official/sparsevlm_v2_L0_L1_L2_40_20_8", "sparsevlm", {**STAGES, "heads": 2}),
        ("official/sparsevlm_v2_L0_L1_L2_40_20_8", "sparsevlm", {**STAGES, "version": "1.0"}),
        ("official/sparsevlm_v1_L0_L1_L2_40_20_8", "sparsevlm", STAGES),
        ("frontier/sparsevlm_rank_241", "sparsevlm", {"version": "first", "bias": 2}),
        ("frontier/sparsevlm_rank_241", "sparsevlm", {"version": "first", "scale": 4}),
        ("official/vscan_decoder_L2_21", "fastv", {"layer": 2, "keep_ratio": 21 / 64}),
        ("frontier/flowcut_16of64_231", "flowcut", {"budget": 15}),
        ("frontier/scope_16_111", "scope", {"budget": 16, "alpha": 0}),
        ("frontier/scope_16_111", "scope", {"budget": 16, "combine": "add"}),
        ("frontier/vispruner_24_0.5_141", "vispruner", {"budget": 24, "removed": 7}),
        ("frontier/holov_24of144_121", "holov", {"budget": 24, "crops": "cells"}),
        ("frontier/holov_overflow_36of144_124", "holov", {"budget": 36, "count": "exact"}),
        ("frontier/vscan_encoder_96_101", "vscan", {"budget": 96, "shallow": 1}),
        ("frontier/vscan_encoder_96_101", "vscan", {"budget": 96, "window": 12}),
        ("frontier/vscan_merge_16_104", "vscan", {"budget": 16, "merge": "none"}),
        ("frontier/cdpruner_16_151", "cdpruner", {"budget": 15}),
        ("frontier/mmtok_16_131", "mmtok", {"budget": 16, "alpha": 0}),
        ("frontier/mmtok_16_131", "mmtok", {"budget": 16, "before": 3}),
        ("frontier/mmtok_16_131", "mmtok", {"budget": 16, "text_temperature": 1.0}),
        ("frontier/trim_0.25_181", "trim", {"ratio": 0.2}),
        ("frontier/hired_tiles_0.2_0.5_173", "hired", {"alpha": 0.4}),
        ("frontier/prunesid_16of64_161", "prunesid", {"budget": 16, "threshold": 4.0}),
        ("frontier/prunesid_16of64_161", "prunesid", {"budget": 16, "per_group": 3}),
        ("frontier/trimtokenator_0.25_0.8_191", "trimtokenator", {"stage1_ratio": 0.3}),
        ("frontier/sparsevlm_cluster_40to5_201", "dpc_knn", {"budget": 5, "order": "fitness", "neighbours": 1}),
    ],
)
def test_another_rule_is_told_apart(file: str, method: str, settings: dict[str, Any]) -> None:
    assert not golden.compare(HERE / f"{file}.npz", method, **settings).equal


def test_the_command() -> None:
    """As it is typed: the last word is the difference."""
    words = [str(HERE / "official" / "pyramiddrop_1_2_3.npz"), "pyramiddrop", "layers=[1,2,3]", "keep=0.5"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, str(HERE / "compare.py"), *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5


@pytest.mark.parametrize(
    "words, status, last",
    [
        (["prumerge_fixed_ratio_batch2.npz", "prumerge", "ratio=1/8"], 0, "small"),
        (["prumerge_fixed_ratio_batch2.npz", "prumerge", "ratio=1/4"], 1, "inf"),
        (["absent.npz", "prumerge"], 2, None),
        (["compare.py", "prumerge"], 2, None),
        (["open_clip.npz", "prumerge"], 2, None),
        (["official/vtw_k2.npz", "no_such_method"], 2, None),
        (["prumerge_fixed_ratio_batch2.npz", "prumerge", "neighbors=3"], 2, None),
    ],
)
def test_its_status(words: list[str], status: int, last: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """0 equal, 1 not, 2 with one line where something cannot be used."""
    assert golden.main([str(HERE / words[0]), *words[1:]]) == status
    said = capsys.readouterr()
    if last == "small":
        assert float(said.out.split()[-1]) < 1e-5
    elif last:
        assert said.out.split()[-1] == last
    else:
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
