"""The rules of the untrained pruners against slow references, and what each of their settings does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from decoder_tokens import build, dropped, layouts, make_tokens, run, shape_of, tokens_of

from llava_prumerge.methods.base import DecoderTokens, ReductionError


def rows_kept(name: str, tokens: DecoderTokens, layer: int, **settings: Any) -> list[list[int]]:
    """Patches of each sequence that are there in a layer, in order."""
    layout = layouts(build(name, **settings), tokens)[layer]
    return [row[row >= 0].tolist() for row in layout.origin]


def attention_of(tokens: DecoderTokens, row: int, query: int) -> list[float]:
    """Head-mean softmax attention of one query to all places it sees, one number at a time."""
    queries, keys, real = tokens.queries(0)[row], tokens.keys(0)[row], tokens.layout.key_mask[row]
    total = [0.0] * keys.shape[1]
    for head in range(len(queries)):
        seen = [place for place in range(query + 1) if real[place]]
        logits = [float(queries[head, query] @ keys[head, place]) / queries.shape[-1] ** 0.5 for place in seen]
        weights = torch.tensor(logits).softmax(dim=0)
        for place, weight in zip(seen, weights.tolist(), strict=True):
            total[place] += weight / len(queries)
    return total


def best(tokens: DecoderTokens, row: int, scores: list[float], count: int, among: set[int] | None = None) -> list[int]:
    """The best-scored patches, in raster order."""
    layout = tokens.layout
    places = [place for place in range(layout.is_image.shape[1]) if layout.is_image[row, place]]
    patches = {int(layout.origin[row, place]): scores[place] for place in places}
    candidates = sorted(patches if among is None else among, key=lambda patch: (-patches[patch], patch))
    return sorted(candidates[:count])


def test_fastv_keeps_what_the_last_token_attends_to() -> None:
    tokens = make_tokens((64, 30), after=(6, 4))
    kept = rows_kept("fastv", tokens, 3, keep_ratio=0.3)
    for row, present in enumerate((64, 30)):
        scores = attention_of(tokens, row, int(tokens.layout.last_index()[row]))
        assert kept[row] == best(tokens, row, scores, round(present * 0.3))


def test_fastv_before_its_layer_nothing_is_missing() -> None:
    counts = run(build("fastv", keep_ratio=0.25, layer=3), make_tokens())
    assert [int(count[0]) for count in counts] == [64, 64, 64, 16, 16, 16, 16, 16]


def test_pyramiddrop_halves_at_each_quarter_of_the_depth() -> None:
    tokens = make_tokens((64, 30), after=(6, 4))
    counts = [count.tolist() for count in run(build("pyramiddrop"), tokens)]
    assert counts == [[64, 30]] * 2 + [[32, 15]] * 2 + [[16, 7]] * 2 + [[8, 3]] * 2
    for row in range(2):  # all layers of these tokens attend alike, but over what is left
        scores, before = attention_of(tokens, row, int(tokens.layout.last_index()[row])), None
        for layer, count in ((2, (32, 15)), (4, (16, 7)), (6, (8, 3))):
            stage = set(rows_kept("pyramiddrop", tokens, layer)[row])
            assert len(stage) == count[row] and (before is None or stage < before)
            before = stage
            if layer == 2:
                assert sorted(stage) == best(tokens, row, scores, count[row])


def test_pyramiddrops_layers_and_lambda() -> None:
    tokens = make_tokens((64,), after=(6,))
    counts = [int(count) for count in run(build("pyramiddrop", layers=[1, 5], keep_ratio=0.25), tokens)]
    assert counts == [64, 16, 16, 16, 16, 4, 4, 4]
    assert build("pyramiddrop", shape_of(32, 576)).layers == (8, 16, 24)
    assert build("pyramiddrop", shape_of(40, 576)).layers == (8, 16, 24), "as the released scripts of 13B have it"
    assert build("pyramiddrop", shape_of(6, 144)).layers == (2, 3, 5)
    assert build("pyramiddrop", layers=[0, 2]).layers == (0, 2), "its own projections rank, so the first layer can, too"
    for wrong in ({"keep_ratio": 0}, {"keep_ratio": 1.2}, {"layers": []}, {"layers": [8]}):
        with pytest.raises(ReductionError, match="pyramiddrop: (keep_ratio|layers)"):
            build("pyramiddrop", **wrong)


def test_uniform_stride_is_every_sth_token() -> None:
    """Of each sequence by itself, of what is there; with a budget in steps that differ by one at most."""
    tokens = make_tokens((64, 30), after=(6, 4))
    for layer, step in ((1, 1), (2, 3), (4, 9), (6, 27)):
        assert rows_kept("uniform_stride", tokens, layer, stride=3) == [[*range(0, n, step)] for n in (64, 30)]
    assert [int(count) for count in run(build("uniform_stride", stride=1), make_tokens((64,), after=(6,)))] == [64] * 8
    for row in rows_kept("uniform_stride", tokens, 2, layers=[2], budget=40):
        steps = {after - before for before, after in zip(row, row[1:])}
        assert row[0] == 0 and len(steps) <= 2 and max(steps) - min(steps) <= 1
    assert build("uniform_stride", shape_of(32, 576)).layers == (8, 16, 24)


def test_vscans_step_keeps_what_the_last_token_attends_to() -> None:
    """A third of what is there, in the middle; or as many as are named, never more than there are."""
    tokens = make_tokens((64, 30), after=(6, 4))
    counts = [count.tolist() for count in run(build("vscan_decoder"), tokens)]
    assert counts == [[64, 30]] * 4 + [[21, 10]] * 4
    kept = rows_kept("vscan_decoder", tokens, 7, layers=[2], counts=[40])
    for row, count in enumerate((40, 30)):
        scores = attention_of(tokens, row, int(tokens.layout.last_index()[row]))
        assert kept[row] == best(tokens, row, scores, count)
    assert build("vscan_decoder", shape_of(32, 576)).layers == (16,)
    for wrong in (
        {"counts": [3, 4], "layers": [1, 2]}, {"counts": [0]}, {"counts": [4, 3]}, {"counts": [4], "budget": 30}, {"counts": []}
    ):  # fmt: skip
        with pytest.raises(ReductionError, match="vscan_decoder: .*counts"):
            build("vscan_decoder", **wrong)


def raters_of(tokens: DecoderTokens, row: int) -> list[int]:
    """Places of SparseVLM's raters, one product at a time."""
    layout, hidden = tokens.layout, tokens.hidden[row]
    images = [place for place in range(hidden.shape[0]) if layout.is_image[row, place]]
    text = [place for place in range(images[-1] + 1, hidden.shape[0]) if layout.key_mask[row, place]]
    weights = torch.zeros(len(text))
    for image in images:
        weights += torch.tensor([float(hidden[image] @ hidden[word]) for word in text]).softmax(dim=0) / len(images)
    return [word for word, weight in zip(text, weights.tolist(), strict=True) if weight > float(weights.mean())]


@pytest.mark.parametrize("version, layer", [("1.0", 3), ("2.0", 3)])
def test_sparsevlm_keeps_what_its_raters_attend_to(version: str, layer: int) -> None:
    """The first drop, whose counts are named; 2.0 with all heads, so that no choice of heads is made here."""
    tokens = make_tokens((64, 30), after=(6, 4))
    more = {"heads": 4} if version == "2.0" else {}
    kept = rows_kept("sparsevlm", tokens, layer, version=version, layers=[layer], counts=[20], **more)
    for row in range(2):
        rows = raters_of(tokens, row)
        assert 0 < len(rows) < (6, 4)[row]
        scores = torch.zeros(tokens.hidden.shape[1], dtype=torch.float64)
        for rater in rows:
            near = tokens.nearness(0, torch.tensor([[rater]] * 2))[row, 0] if version == "2.0" else 1.0
            scores += torch.tensor(attention_of(tokens, row, rater), dtype=torch.float64) / near
        assert kept[row] == best(tokens, row, scores.tolist(), 20)


@pytest.mark.parametrize("images", [(64, 30), (2, 64)])
def test_sparsevlms_first_version_counts_by_a_rank(images: tuple[int, int]) -> None:
    """int(rank * scale + bias), at most all but one; all where the rank is their number. NumPy's rank, one sequence at a time."""
    tokens, (scale, bias), full = make_tokens(images, after=(6, 4)), (2.5, 1.0), 0
    pruner = build("sparsevlm", version="first", layers=[3], scale=scale, bias=bias)
    pruner(0, tokens)
    answer = pruner(3, tokens)
    for row, present in enumerate(images):
        rows = raters_of(tokens, row)
        places = [place for place in range(tokens.hidden.shape[1]) if tokens.layout.is_image[row, place]]
        block = np.array([attention_of(tokens, row, rater) for rater in rows], dtype=np.float32)[:, places]
        rank, scores = int(np.linalg.matrix_rank(block)), block.sum(axis=0)
        wanted = present if rank == present else min(int(rank * scale + bias), present - 1)
        stays = answer.keep[row, places] & ~answer.merged[row, places]
        kept, full = stays.nonzero()[:, 0].tolist(), full + (rank == present)
        assert kept == sorted(np.argsort(-scores, kind="stable")[:wanted].tolist())
        gone = present - wanted
        pool = min(gone, int(0.3 * gone) + 1)
        assert int(answer.merged[row].sum()) == (int(pool / 10) + 1 if gone else 0)
    assert full == (2 in images), "where the rank is the number of tokens nothing goes"
    assert build("sparsevlm", shape_of(32, 576), version="first").layers == (0, 3, 7, 16, 20)
    for wrong in (
        {"version": "first", "budget": 40},
        {"version": "first", "counts": [4]},
        {"scale": 2.0},
        {"bias": 1.0},
    ):
        with pytest.raises(ReductionError, match=f"sparsevlm: {[*wrong][-1]} is of no use in version"):
            build("sparsevlm", **wrong)


def test_sparsevlms_counts_are_the_releases() -> None:
    """Clusters included, of 576 tokens in 32 layers; "192" and the table of docs/methods_decoder.md."""
    course = {version: build("sparsevlm", shape_of(32, 576), version=version).course(576) for version in ("1.0", "2.0")}
    assert [course["2.0"].visual[layer] for layer in (2, 3, 7, 16)] == [576, 300, 200, 118]
    assert [course["1.0"].visual[layer] for layer in (2, 3, 7, 16)] == [576, 309, 204, 113]
    for counts, totals in (([303, 110, 36], [312, 117, 39]), ([66, 30, 17], [82, 32, 18])):
        visual = build("sparsevlm", shape_of(32, 576), version="1.0", counts=counts).course(576).visual
        assert [visual[layer] for layer in (3, 7, 16)] == totals
    assert sum(course["2.0"].visual) / 32 == 206.75
    assert build("sparsevlm", shape_of(32, 576)).layers == (0, 3, 7, 16)
    with pytest.raises(ReductionError, match="sparsevlm: layers .*need counts"):
        build("sparsevlm", layers=[1, 2])
    for wrong in ({"layers": [0, 1, 2]}, {"version": "3.0"}, {"version": "1.0", "heads": 2}, {"heads": 0}):
        with pytest.raises(ReductionError, match=f"sparsevlm: {[*wrong][-1]}"):
            build("sparsevlm", **wrong)


def test_what_sparsevlm_merges_stands_behind_the_image() -> None:
    """Each mean is that of tokens that went, behind all that stay and before the text; nothing else changes."""
    tokens = make_tokens((64, 30), after=(6, 4))
    pruner = build("sparsevlm", version="1.0", layers=[2], counts=[12])
    assert pruner(0, tokens) is None
    answer = pruner(2, tokens)
    after = dropped(tokens, answer)
    for row in range(2):
        origin, is_image = after.layout.origin[row], after.layout.is_image[row]
        visual = origin[is_image].tolist()
        clusters = sum(place < 0 for place in visual)
        assert visual[:12] == sorted(visual[:12]) and visual[12:] == [-1] * clusters and clusters == (2, 1)[row]
        gone = [place for place in range((64, 30)[row]) if place not in visual]
        points = tokens.hidden[row][tokens.layout.is_image[row]][gone]
        for mean in after.hidden[row][is_image][12:]:
            rest = torch.linalg.lstsq(points.T.double(), mean[:, None].double()).solution[:, 0]
            assert float((points.T.double() @ rest - mean.double()).abs().max()) < 1e-4, "a mix of what went"
        text = after.layout.key_mask[row] & ~is_image
        assert torch.equal(
            after.hidden[row][text], tokens.hidden[row][tokens.layout.key_mask[row] & ~tokens.layout.is_image[row]]
        )


def test_vtw_leaves_text_alone() -> None:
    tokens = make_tokens()
    seen = layouts(build("vtw", layer=5), tokens)
    assert [int(layout.is_image.sum()) for layout in seen] == [192] * 5 + [0] * 3
    assert torch.equal(seen[5].key_mask.sum(dim=1), (tokens.layout.key_mask & ~tokens.layout.is_image).sum(dim=1))
    assert build("vtw", shape_of(32, 576)).layer == 15 and build("vtw", shape_of(6, 144)).layer == 3


@pytest.mark.parametrize("budget, layer", [(8, 1), (20, 2), (21, 3), (32, 4), (63, 8), (64, 8), (900, 8)])
def test_vtws_budget_is_the_nearest_layer(budget: float, layer: int) -> None:
    pruner = build("vtw", budget=budget)
    assert pruner.layer == layer
    counts = torch.stack(run(pruner, make_tokens())).double().mean(dim=0)
    assert (counts == 8 * layer).all() and abs(8 * layer - min(budget, 64)) <= 4


@pytest.mark.parametrize(
    "settings, reduced, word",
    [
        ({"budget": 3}, False, "budget 3 is less than half of one layer"),
        ({"budget": 30}, True, "behind a vision reducer; give layer"),
        ({"budget": 30, "layer": 2}, False, "layer=2 or budget=30, not both"),
        ({"layer": 0}, False, "layer 0 is not one of 1 to 8"),
        ({"layer": 9}, False, "layer 9"),
        ({"layer": 2.5}, False, "layer 2.5"),
    ],
)
def test_vtw_checks_its_settings(settings: dict[str, Any], reduced: bool, word: str) -> None:
    with pytest.raises(ReductionError, match=f"vtw: .*{word}"):
        build("vtw", shape_of(reduced=reduced), **settings)


def dart_reference(
    tokens: DecoderTokens, row: int, count: int, pivots: int, text_pivots: int, released: bool
) -> list[int]:
    """DART as the authors' loops do it; not released: plain states, image pivots first, by falling norm."""
    layout = tokens.layout
    keys = tokens.keys(0)[row].transpose(0, 1).flatten(1)  # [L, D]
    places = range(layout.is_image.shape[1])
    images = [place for place in places if layout.is_image[row, place]]
    text = [
        place
        for place in places
        if layout.key_mask[row, place] and not layout.is_image[row, place] and place > images[-1]
    ]
    norm = {place: float(keys[place].abs().sum()) for place in images + text}
    first = sorted(images, key=lambda place: -norm[place])[: min(pivots, count)]
    asked = sorted(text, key=lambda place: -norm[place])[:text_pivots]
    taken, wanted, turns = list(first), count - len(first), len(first) + len(asked)
    begin = int(layout.key_mask[row].long().argmax())
    order = [place + begin for place in {one - begin for one in first + asked}] if released else first + asked
    states = tokens.normed() if released else tokens.hidden
    for turn, pivot in enumerate(order):
        share = wanted * (turn + 1) // turns - wanted * turn // turns
        likeness = {
            place: float(torch.cosine_similarity(states[row, pivot], states[row, place], dim=0))
            for place in images
            if place not in taken
        }
        taken += sorted(likeness, key=lambda place: likeness[place])[:share]
    return sorted(int(layout.origin[row, place]) for place in taken)


@pytest.mark.parametrize("pivots, text_pivots", [(4, 4), (8, 0), (1, 2), (30, 4), (3, 50)])
@pytest.mark.parametrize("keep", [0.03, 0.25, 0.7])
def test_dart_equals_the_loops(pivots: int, text_pivots: int, keep: float) -> None:
    tokens = make_tokens((64, 30), after=(6, 4))
    settings = {"pivots": pivots, "text_pivots": text_pivots, "keep_ratio": keep}
    plain = {"states": "plain", "turns": "norm", "count": "exact"}
    for released, more in ((True, {}), (False, plain)):
        kept = rows_kept("dart", tokens, 2, **settings, **more)
        for row, present in enumerate((64, 30)):
            count = -(-round(present * keep * 100) // 100)
            if released:
                share = int(present * keep + 1e-9) // (pivots + text_pivots)
                count = min(present, pivots + (pivots + text_pivots) * share)
            assert len(kept[row]) == count
            assert kept[row] == dart_reference(tokens, row, count, pivots, text_pivots, released)


def test_dart_drops_duplicates() -> None:
    """Three groups of equal tokens, one pivot: the other groups stay before the pivot's own doubles do."""
    tokens = make_tokens((12,), after=(3,))
    base = torch.eye(32)[[0, 1, 2]].repeat_interleave(4, dim=0)  # [12, D]
    hidden, keys = tokens.hidden.clone(), tokens.keys(0).transpose(1, 2).flatten(2).clone()
    hidden[0, 3:15], keys[0, 3:15], keys[0, 3] = base, 0.0, 100.0
    made = tokens_of(tokens.layout, hidden, keys, keys)
    plain = {"states": "plain", "count": "exact"}
    kept = rows_kept("dart", made, 2, keep_ratio=9 / 12, pivots=1, text_pivots=0, **plain)
    assert kept[0] == [0, 4, 5, 6, 7, 8, 9, 10, 11]


def test_darts_settings() -> None:
    tokens = make_tokens(before=5)
    kept = {key: rows_kept("dart", tokens, 2, **{"keep_ratio": 0.35, **settings}) for key, settings in {
        "plain": {}, "pivots": {"pivots": 8}, "text": {"text_pivots": 0}, "norm": {"norm": 8.0},
        "states": {"states": "plain"}, "turns": {"turns": "norm"}, "count": {"count": "exact"}}.items()}  # fmt: skip
    assert all(kept[key] != kept["plain"] for key in ("pivots", "text", "norm", "states", "turns", "count"))
    assert build("dart").later_turns == "none" and build("dart", text_pivots=0).later_turns == "text"
    for wrong in ({"layer": 0}, {"keep_ratio": 0}, {"pivots": 0}, {"text_pivots": -1}, {"pivots": 1.5}, {"norm": 0}):
        with pytest.raises(ReductionError, match=f"dart: {next(iter(wrong))}"):
            build("dart", **wrong)


CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "method"
RATES = [1, 1, 0.8, 0.8, 0.5, 0.25, 0.25, 0.1]


@pytest.mark.parametrize("rows", ["last", "text"])
def test_schedule_ranks_by_the_prompts_rows(rows: str) -> None:
    tokens = make_tokens((64, 30), after=(6, 4))
    kept = rows_kept("rank_schedule", tokens, 2, rates=RATES, rows=rows)
    for row, present in enumerate((64, 30)):
        end, text = int(tokens.layout.last_index()[row]), (6, 4)[row]
        asking = [end] if rows == "last" else range(end - text + 1, end + 1)
        scores = torch.tensor([attention_of(tokens, row, query) for query in asking]).mean(dim=0).tolist()
        assert kept[row] == best(tokens, row, scores, -(-present * 8 // 10))


def test_schedule_keeps_the_given_rates_of_what_there_was_at_first() -> None:
    counts = [count.tolist() for count in run(build("rank_schedule", rates=RATES), make_tokens((64, 30), after=(6, 4)))]
    assert [count[0] for count in counts] == [64, 64, 52, 52, 32, 16, 16, 7]
    assert [count[1] for count in counts] == [30, 30, 24, 24, 15, 8, 8, 3]


@pytest.mark.parametrize("depth, gamma, k", [("layers", 1.5, 3.0), ("relative", 12.0, 0.375)])
def test_schedules_sigmoid_is_the_formula(depth: str, gamma: float, k: float) -> None:
    """The same curve in both units of depth: 8 layers."""
    counts = run(build("rank_schedule", r=0.1, gamma=gamma, k=k, depth=depth), make_tokens())
    for layer, count in enumerate(counts):
        rate = 1.0 if layer == 0 else 1 + (0.1 - 1) * float(torch.sigmoid(torch.tensor(1.5 * (layer - 3.0))))
        assert 0 <= int(count[0]) - 64 * rate < 1


def test_schedules_budget_moves_the_sigmoid_and_raises_the_rates() -> None:
    tokens = make_tokens()
    for budget in (20, 31, 45):
        moved = torch.stack(run(build("rank_schedule", r=0.05, gamma=1.0, budget=budget), tokens)).double()
        raised = torch.stack(run(build("rank_schedule", rates=RATES, budget=budget), tokens)).double()
        assert (moved.mean(dim=0) == budget).all() and (raised.mean(dim=0) == budget).all()
        assert (raised[:2] == 64).all(), "what was kept whole stays whole"


def test_schedule_acts_only_where_tokens_go() -> None:
    asked = []
    tokens = make_tokens()
    plain = tokens.attention
    tokens.attention = lambda layer, rows: asked.append(layer) or plain(layer, rows)
    pruner = build("rank_schedule", rates=[1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert pruner.layers == (3, 4, 5, 6, 7), "the first rate below 1 is the first layer that is asked"
    assert pruner(3, tokens) is not None and asked == [2], "the layer before ranks"
    early = build("rank_schedule", rates=[1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5], first=1)
    assert [early(layer, make_tokens()) is None for layer in (1, 2)] == [True, True]


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"rates": [1, 0.5]}, "2 rates for 8 layers"),
        ({"rates": [1, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5]}, "rises from 0.5 to 0.6 at layer 2"),
        ({"rates": [0.9] * 8}, "before layer 1 must be 1"),
        ({"rates": [1, 1.5, 1, 1, 1, 1, 1, 1]}, "rate 1.5 is not in"),
        ({"rates": [1] * 8, "r": 0.5}, "r=0.5 means nothing beside rates"),
        ({"rates": [1] * 8, "height": 0.5, "slope": 1}, "height=0.5, slope=1.0 means nothing beside rates"),
        ({"form": "height", "gamma": 1}, "gamma=1.0 means nothing beside the sigmoid of form height"),
        ({"form": "floor", "centre": 3}, "centre=3.0 means nothing beside the sigmoid of form floor"),
        ({"height": 1.5}, "height 1.5"),
        ({"slope": 0}, "slope 0"),
        ({"scaled": True}, "scaled is about rates"),
        ({"budget": 30, "centre": 2}, "decides centre"),
        ({"r": -0.1}, "r -0.1"),
        ({"gamma": 0}, "gamma 0"),
        ({"k": float("inf")}, "k inf"),
        ({"rows": "all"}, "rows 'all' is not one of last, text"),
        ({"depth": "feet"}, "depth 'feet'"),
        ({"first": 0}, "first 0"),
        ({"first": 8}, "first 8"),
        ({"budget": 30, "k": 2}, "decides k"),
    ],
)
def test_schedule_checks_its_settings(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ReductionError, match=f"rank_schedule: .*{word}"):
        build("rank_schedule", **settings)


def test_schedules_first_layer() -> None:
    counts = run(build("rank_schedule", r=0.1, k=0.0, gamma=5.0, first=4), make_tokens())
    assert [int(count[0]) for count in counts] == [64] * 4 + [7] * 4


def test_the_papers_sigmoid() -> None:
    """0.756 x sigmoid(-0.226 (l - 12.2)) from layer 3 of 32 on, and at the same fractions of other depths."""
    pruner = build("rank_schedule", shape_of(32, 576))
    counts = pruner.course(576).visual
    rates = [0.756 / (1 + math.exp(0.226 * (layer - 12.2))) for layer in range(32)]
    assert counts[:3] == (576,) * 3 and pruner.layers[0] == 3
    assert list(counts[3:]) == [math.ceil(576 * rate - 1e-6) for rate in rates[3:]]
    half = build("rank_schedule", shape_of(16, 576)).course(576).visual
    assert half[5] == math.ceil(576 * 0.756 / (1 + math.exp(0.452 * (5 - 6.1))))
    for budget in (60, 150):
        moved = build("rank_schedule", shape_of(32, 576), budget=budget, slope=0.4, height=0.9).course(576).visual
        assert sum(moved) / 32 == pytest.approx(budget, abs=0.5 / 32) and moved[3] < 576


def test_the_published_curve_of_g_search() -> None:
    """Fig. 1c's rates, whose mean the paper prints as 0.340; at other depths the same fractions of it."""
    block = yaml.safe_load((CONFIGS / "g_search.yaml").read_text())["decoder"]
    name = block.pop("name")
    counts = build(name, shape_of(32, 576), **block).course(576).visual
    assert sum(counts) / 32 / 576 == pytest.approx(0.340, abs=0.004) and counts[2:4] == (576, 375)
    assert build(name, shape_of(6, 144), **block).course(144).visual == (144, 90, 72, 34, 11, 6)
    with pytest.raises(ReductionError, match="32 rates for 6 layers"):
        build(name, shape_of(6, 144), **{**block, "scaled": False})
