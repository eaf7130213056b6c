"""One description of a method, whatever form it takes: the same words give the same block, and mistakes say what is accepted."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vision_tokens import packaged

from llava_prumerge.methods import settings as settings_module
from llava_prumerge.methods.labels import label_of, method_label, method_name
from llava_prumerge.methods.registry import build_pruner, discover, fields_of, site_of
from llava_prumerge.methods.resolve import is_setting, method_files, read_settings, resolve, stored_reduction
from llava_prumerge.ops.errors import ReductionError

FASTV = {"name": "fastv", "layer": 3, "keep_ratio": 0.25}
PAIR = {"vision": {"name": "prumerge_plus", "budget": 64}, "decoder": FASTV}


@pytest.mark.parametrize(
    "described",
    [
        FASTV,
        {"decoder": FASTV},
        {"reduction": {"vision": None, "decoder": FASTV}},
        {"vision": "none", "decoder": FASTV},
        "{name: fastv, layer: 3, keep_ratio: 0.25}",
        "{decoder: {name: fastv, layer: 3, keep_ratio: 0.25}}",
        "fastv:layer=3,keep_ratio=0.25",
        "fastv:layer=3,keep=1/4",
        "none+fastv:layer=3, keep_ratio=0.25",
        {"decoder": "fastv:layer=3,keep_ratio=0.25"},
        {"name": "fastv", "layer": 3, "keep": 0.25},
    ],
    ids=str,
)
def test_one_method_in_all_its_forms(described: Any) -> None:
    found = resolve(described)
    assert set(found) == {"decoder"}
    assert {**found["decoder"], "keep_ratio": 0.25} == FASTV and found["decoder"]["keep_ratio"] in (0.25, "1/4")


@pytest.mark.parametrize(
    "described, settings",
    [
        (PAIR, {}),
        ("prumerge_plus:budget=64+fastv:layer=3,keep=0.25", {}),
        ("prumerge_plus+fastv", {"budget": 64, "layer": 3, "keep": 0.25}),
        ("prumerge_plus", {"decoder": "fastv", "vision.budget": 64, "decoder.keep": 0.25, "layer": 3}),
        ("prumerge_plus", {"reduction.decoder": FASTV, "reduction.vision.budget": 64}),
        ({"vision": "prumerge_plus", "decoder": {"name": "fastv", "keep": 0.25}}, {"budget": 64, "decoder.layer": 3}),
        ("tome+fastv:layer=3", {"vision.name": "prumerge_plus", "budget": 64, "keep_ratio": 0.25}),
    ],
    ids=str,
)
def test_a_pair_in_all_its_forms(described: Any, settings: dict[str, Any]) -> None:
    assert resolve(described, settings) == PAIR


def test_files_and_names() -> None:
    assert (
        resolve("grid_5x8")
        == resolve(method_files()["grid_5x8"])
        == {"vision": {"name": "grid", "rows": 5, "columns": 8}}
    )
    assert resolve("p_sigmoid")["decoder"]["name"] == "rank_schedule"
    assert resolve({"name": "p_sigmoid", "slope": 0.3})["decoder"]["slope"] == 0.3
    assert [resolve(word) for word in ("none", "{}", {}, {"vision": {"name": "none"}}, method_files()["none"])] == [
        {}
    ] * 5
    assert [label_of(word) for word in ("a/b.yaml", "fastv:keep=0.5")] == ["b", "fastv:keep=0.5"]


@pytest.mark.parametrize("name", packaged())
def test_each_method_has_a_file_of_its_name_with_its_defaults(name: str) -> None:
    """So that it does not matter whether a word is taken as the file or as the method."""
    path = method_files().get(name)
    assert path is not None, f"configs/method/{name}.yaml is missing"
    assert path.read_text("utf-8").startswith("# ")
    cls, block = discover()[name], resolve(path)
    if name == "none":
        assert block == {}
        return
    assert list(block) == [site_of(name)] and block[site_of(name)]["name"] == name
    given = {key: value for key, value in block[site_of(name)].items() if key != "name"}
    assert cls.settings_class.read(given, name) == cls.settings_class()


def test_what_a_checkpoint_carries_is_where_settings_start() -> None:
    own = {"decoder": {"name": "fastv", "keep": 0.5, "layer": 3}}
    assert resolve(None, {}, own) is None
    assert resolve(None, {"keep_ratio": 0.25}, own) == {"decoder": FASTV | {"layer": 3}}
    assert resolve(None, {"budget": 40}, {"vision": {"name": "prumerge"}}) == {
        "vision": {"name": "prumerge", "budget": 40}
    }
    assert resolve("none", {}, own) == resolve(None, {"decoder": None}, own) == {}


def test_a_budget_goes_to_the_first_method_that_takes_one() -> None:
    assert resolve("prumerge_plus+vtw", {"budget": 40})["vision"]["budget"] == 40
    assert resolve({"vision": {"name": "none"}, "decoder": {"name": "vtw"}}, {"budget": 40}) == {
        "decoder": {"name": "vtw", "budget": 40}
    }


def test_former_names_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    settings_module._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            build_pruner({"name": "dart", "keep": 0.25}, _shape())
    assert [record.message for record in caplog.records] == ["dart: the setting keep is now called keep_ratio"]
    with pytest.raises(ReductionError, match="dart: keep_ratio and keep_ratio|dart: keep and keep_ratio are the same"):
        resolve({"name": "dart", "keep": 0.25, "keep_ratio": 0.5})


@pytest.mark.parametrize(
    "described, settings, words",
    [
        ("prumrge", {}, "method 'prumrge' is not known; did you mean 'prumerge'"),
        ("magic", {}, "method 'magic' is not known; there are: .*--plugin"),
        ("no/such.yaml", {}, "no/such.yaml: no such file; method 'such' is not known"),
        ("configs/method/gird.yaml", {}, "gird.yaml: no such file; method 'gird' is not known; did you mean 'grid'"),
        ({"vision": "fastv"}, {}, "fastv is a decoder pruner; it goes under decoder, not under vision"),
        ({"vision": {"name": "fastv"}}, {}, "fastv is a decoder pruner"),
        ({"decoder": {"name": "prumerge"}}, {}, "prumerge is a vision reducer; it goes under vision"),
        ("fastv+dart", {}, "names two methods for decoder, fastv and dart"),
        ({"visoin": "tome"}, {}, "key 'visoin' is not known; did you mean 'vision'"),
        ({"vision": {"budget": 3}}, {}, "reduction.vision .* must name a method"),
        ({"vision": 3}, {}, "reduction.vision is 3; it must name a method"),
        (["fastv"], {}, "describes no method"),
        ("{a: [", {}, "not valid YAML"),
        ("fastv", {"layr": 3}, "fastv: setting 'layr' is not known; did you mean 'layer'"),
        ("fastv:layr=3", {}, "did you mean 'layer'"),
        ("fastv", {"layer": "three"}, "fastv: layer 'three' is not a layer of at least 1"),
        ("fastv", {"keep_ratio": 2}, r"fastv: keep_ratio 2 is not a number in \[0, 1\] or a fraction"),
        ("prumerge", {"budget": 0}, "prumerge: budget 0 is not a positive whole number"),
        ("prumerge", {"decoder.layer": 3}, "decoder.layer=3 has no method to belong to"),
        ("prumerge", {"vision.a.b": 3}, "vision.a.b: a setting is KEY, vision.KEY or decoder.KEY"),
        (None, {"budget": 3}, "budget has no method to belong to; name one: method=NAME"),
        ("none", {"budget": 3}, "budget has no method to belong to"),
        (
            "tome+fastv",
            {"keep_ratio": 0.3},
            "tome and fastv both have keep_ratio; say vision.keep_ratio or decoder.keep",
        ),
        ("tome+fastv", {"ronds": 3}, r"tome\+fastv: setting 'ronds' is not known; did you mean 'rounds'"),
        ("grid_5x8", {"budget": 40}, "grid: give rows and columns or budget=40, not both"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_that_says_what_is_accepted(described: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ReductionError, match=words) as caught:
        resolve(described, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["- a\n", "3\n", "a: [", "\0", "fastv\n", "vision: {budget: 3}\n", "other: {name: fastv}\n"]
)
def test_a_file_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ReductionError, match="bad.yaml is no method file"):
        resolve(tmp_path / "bad.yaml")


def test_a_file_that_names_itself_is_no_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.yaml").write_text("vision: loop\n")
    monkeypatch.setattr("llava_prumerge.ground.shipped.folder", lambda kind: tmp_path)
    with pytest.raises(ReductionError, match="it names itself"):
        resolve("loop")


def test_settings_of_a_command() -> None:
    words = ["layers=[1,3]", "keep=0.4375", "share=13/17", "budget=17", "order=raster", "k=null", "extra=false"]
    assert read_settings(words) == {
        "layers": [1, 3],
        "keep": 0.4375,
        "share": "13/17",
        "budget": 17,
        "order": "raster",
        "k": None,
        "extra": False,
    }
    for wrong, told in (
        (["budget"], "'budget' is not key=value"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=["], "valid YAML"),
    ):
        with pytest.raises(ReductionError, match=told):
            read_settings(wrong)
    assert resolve("pyramiddrop", {"layers": [1, 3], "keep": 0.4375})["decoder"]["layers"] == [1, 3]
    assert resolve("prumerge_plus:budget=17,share=13/17")["vision"] == {
        "name": "prumerge_plus",
        "budget": 17,
        "share": "13/17",
    }
    assert all(map(is_setting, ("budget", "keep", "keep_ratio", "reduction.vision.x", "decoder.layer", "vision")))
    assert not is_setting("batch_size")


def test_names_and_labels() -> None:
    block = {"vision": {"name": "grid", "rows": 5, "columns": 8}, "decoder": {"name": "fastv"}}
    assert (method_name(block), method_label(block)) == ("grid+fastv", "grid columns=8 rows=5 + fastv")
    assert method_name(None) == method_name({}) == method_label({"vision": {"name": "none"}}) == "none"
    assert resolve(method_name(block)) == resolve("grid+fastv")


def test_a_checkpoints_block_is_read_from_its_configuration(tmp_path: Path) -> None:
    assert stored_reduction(None) == stored_reduction("org/name") == stored_reduction(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"reduction": {"vision": {"name": "tome"}}}')
    assert stored_reduction(tmp_path) == {"vision": {"name": "tome"}}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ReductionError, match="config.json: line 1, column 2: not JSON"):
        stored_reduction(tmp_path)


@pytest.mark.parametrize("name", list(discover()))
def test_every_setting_says_what_it_means(name: str) -> None:
    for info in fields_of(discover()[name]).values():
        assert len(info.meaning) > 5 and info.accepted, f"{name}.{info.name} has no meaning"


def test_looking_at_words_loads_no_torch() -> None:
    code = (
        "import sys; from llava_prumerge.methods.resolve import resolve; resolve('none'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _shape() -> Any:
    from llava_prumerge.methods.base import DecoderShape

    return DecoderShape(32, 4096, 32, 576)


@dataclass(frozen=True, kw_only=True)
class Ruled(settings_module.Settings):
    """A field of each rule, whole numbers and any."""

    whole: int = settings_module.setting(1, "", settings_module.at_least(0))
    positive: int | None = settings_module.setting(1, "", settings_module.at_least(1))
    real: float = settings_module.setting(1, "", settings_module.at_least(0))
    optional: float | None = settings_module.setting(None, "", settings_module.at_least(0.5))
    more: int = settings_module.setting(3, "", settings_module.above(2))
    inside: float = settings_module.setting(0.5, "", settings_module.between(0, 1))
    share: float = settings_module.setting(0.5, "", settings_module.fraction())
    told: float = settings_module.setting(1, "", settings_module.above(0, accepted="a length above 0"))


@pytest.mark.parametrize(
    ("key", "accepted", "refused", "words"),
    [
        ("whole", 0, -1, "a whole number of at least 0"),
        ("whole", 0, 0.5, "a whole number of at least 0"),
        ("positive", None, 0, "a positive whole number"),
        ("real", 0.25, -0.25, "a number of at least 0"),
        ("optional", 0.5, 0.25, "a number of at least 0.5"),
        ("more", 3, 2, "a whole number above 2"),
        ("inside", 0.5, 1, "a number between 0 and 1"),
        ("share", 1, 0, "a number in (0, 1] or a fraction such as 1/8"),
        ("told", 0.1, 0, "a length above 0"),
    ],
)
def test_rules_say_what_they_accept_in_a_field_of_their_type(key: str, accepted: Any, refused: Any, words: str) -> None:
    assert getattr(Ruled.read({key: accepted}, "ruled"), key) == accepted
    with pytest.raises(ReductionError) as raised:
        Ruled.read({key: refused}, "ruled")
    assert str(raised.value) == f"ruled: {key} {refused} is not {words}"
    assert Ruled.infos()[key].accepted == words


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "1e999", 10**400, "1/0", f"1/{'9' * 5000}"])
def test_a_number_that_is_none_is_no_setting(value: object) -> None:
    with pytest.raises(ReductionError, match="prumerge: iqr_factor .* is not a"):
        resolve({"vision": {"name": "prumerge", "iqr_factor": value}}, {}, None)
    with pytest.raises(ReductionError, match="fastv: layer .* is not a"):
        resolve({"decoder": {"name": "fastv", "layer": value}}, {}, None)
