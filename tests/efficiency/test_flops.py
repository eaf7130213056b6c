"""FLOPs: the published numbers of each convention, and the true ones against what torch counts on real modules."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_prumerge.efficiency.conventions import CONVENTIONS, layer_macs, prefill_flops
from llava_prumerge.efficiency.errors import EfficiencyError
from llava_prumerge.efficiency.flops import ranking_flops, split
from llava_prumerge.efficiency.operations import HALF, decode, matrix_flops, projector, tower
from llava_prumerge.efficiency.shapes import named_shapes
from llava_prumerge.efficiency.tokens import constant_counts, layered_counts, method_counts
from llava_prumerge.methods.registry import discover, fields_of
from llava_prumerge.ops.errors import ReductionError
from llava_prumerge.profiling.flops import reducer_flops

SEVEN, THIRTEEN, POCKET = (named_shapes()[name] for name in ("llava-1.5-7b", "llava-1.5-13b", "pocket"))
BY_LETTER = {item.letter: item.flops for item in CONVENTIONS}


@pytest.mark.parametrize(
    ("letter", "tokens", "text", "published", "within"),
    [
        ("A", 576, 36, 99.33e9, 0.005e9),  # FastV: n = 612
        ("B", 576, 40, 2.986e12, 0.0005e12),
        ("C", 576, 40, 3.817e12, 0.0005e12),
        ("C", 192, 40, 1.253e12, 0.0005e12),
        ("C", 128, 40, 0.833e12, 0.0005e12),
        ("C", 64, 40, 0.416e12, 0.0005e12),
        ("C", 32, 40, 0.208e12, 0.0005e12),
        ("D", 576, 0, 7.634e12, 0.0005e12),
        ("D", 576, 40, 8.18e12, 0.005e12),
        ("E", 576, 54, 8.53e12, 0.005e12),  # 8.41 to 8.53 for n = 622 to 630; calflops said 8.48
        ("E", 576, 46, 8.41e12, 0.015e12),
        ("F", 576, 124, 9.33e12, 0.005e12),  # S = 700
        ("F", 40, 30, 0.91e12, 0.005e12),  # S = 70
    ],
)
def test_published_values(letter: str, tokens: int, text: int, published: float, within: float) -> None:
    counted = BY_LETTER[letter](SEVEN.language, constant_counts(SEVEN, tokens, text), False)
    assert counted == pytest.approx(published, abs=within)


def test_visual_conventions_do_not_see_the_text_and_the_others_do() -> None:
    short, long = (constant_counts(SEVEN, 144, text) for text in (10, 200))
    for letter, flops in BY_LETTER.items():
        grows = flops(SEVEN.language, long, False) > flops(SEVEN.language, short, False)
        assert grows == (letter not in "BC")


def test_each_convention_relates_to_the_others_as_its_words_say() -> None:
    shape, counts = SEVEN.language, constant_counts(SEVEN, 576, 0)
    a, b, c, d, e, f = (flops(shape, counts, False) for flops in BY_LETTER.values())
    assert b == pytest.approx(32 * a)
    assert c - b == 32 * 576 * 4096 * 11008
    assert d == 2 * c
    assert e - d == 2 * 576 * 4096 * 32000
    extra = 32 * (5 * 32 * 576**2 + 18 * 576 * 4096) + 4096 * 32000  # softmax, 2 norms, 2 adds, SiLU; half a head
    assert f - d == extra


@pytest.mark.parametrize("letter", list(BY_LETTER))
def test_causal_leaves_half_of_the_pairs(letter: str) -> None:
    shape, counts = SEVEN.language, constant_counts(SEVEN, 576, 0)
    saved = BY_LETTER[letter](shape, counts, False) - BY_LETTER[letter](shape, counts, True)
    pairs = 576 * 575 / 2
    per_pair = {"A": 2 * 4096, "B": 2 * 4096 * 32, "C": 2 * 4096 * 32}.get(letter, 4 * 4096 * 32)
    softmax = 5 * 32 * 32 if letter == "F" else 0
    assert saved == pytest.approx(pairs * (per_pair + softmax))


def test_equivalent_tokens_are_what_decoder_side_methods_are_compared_by() -> None:
    fastv = layered_counts(SEVEN, "2x576,30x144")
    assert fastv.equivalent == 171
    linear, squared = ([sum(n**power for n in fastv.visual) for power in (1, 2)][at] for at in (0, 1))
    by_hand = linear * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * squared * 4096
    assert BY_LETTER["C"](SEVEN.language, fastv, False) == by_hand


@pytest.mark.parametrize(
    ("method", "settings", "tokens", "equivalent"),
    [
        ("fastv", {}, None, 306),
        ("fastv", {"keep": 0.25}, None, 171),
        ("fastv", {}, 171, 171),
        ("dart", {}, None, 175),
        ("dart", {"count": "exact"}, None, 171),
        ("pyramiddrop", {}, None, 270),
        ("vtw", {}, None, 270),
        ("rank_schedule", {}, 144, 144),
        ("prumerge_plus", {}, 144, 144),
        ("none", {}, None, 576),
    ],
)
def test_methods_are_asked_for_their_layers(method: str, settings: dict, tokens: int | None, equivalent: float) -> None:
    counts = method_counts(SEVEN, method, tokens, 40, settings)
    assert counts.equivalent == pytest.approx(equivalent, abs=0.5)
    assert len(counts.visual) == 32


@pytest.mark.parametrize("method", list(discover()))
def test_every_method_has_a_cost_or_says_what_it_needs(method: str) -> None:
    takes_budget = "budget" in fields_of(discover()[method])
    counts = method_counts(POCKET, method, 80 if takes_budget else None, 10)
    assert counts.exact and counts.equivalent == pytest.approx(80, abs=12) or not takes_budget  # VTW has whole layers
    assert 0 < counts.equivalent <= 144 and counts.source
    if counts.kept is not None:
        assert reducer_flops(POCKET, {"name": method}, 80, 10) >= 0
    assert split(POCKET, counts)["prefill"] <= split(POCKET, constant_counts(POCKET, None, 10))["prefill"]


def test_what_a_method_leaves_without_a_budget_is_its_rule_or_its_papers_mean() -> None:
    """Or has to be given, where neither is there."""
    assert method_counts(SEVEN, "prumerge").visual[0] == 32 and method_counts(SEVEN, "prumerge_plus").visual[0] == 144
    assert not method_counts(SEVEN, "prumerge").exact and "the paper's mean" in method_counts(SEVEN, "prumerge").source
    assert method_counts(SEVEN, "tome").visual[0] == 64 and method_counts(SEVEN, "tome").exact
    assert method_counts(SEVEN, "prumerge_plus_fixed").visual[0] == 145, "as its file says"
    for name in ("grid", "random", "uniform", "cls_topk", "pool"):
        with pytest.raises(EfficiencyError, match=f"{name} needs --tokens, from 1 to 576"):
            method_counts(SEVEN, name)
    atp = method_counts(SEVEN, "atp_llava")
    assert atp.equivalent == pytest.approx(144, abs=0.5) and not atp.exact and atp.visual[:4] == (576,) * 4
    with pytest.raises(ReductionError, match="atp_llava: setting 'budget' is not known"):
        method_counts(SEVEN, "atp_llava", 72)


def test_a_reducer_and_a_pruner_are_counted_together() -> None:
    counts = method_counts(SEVEN, "prumerge_plus+fastv", 288)
    assert counts.visual == (288,) * 2 + (144,) * 30 and (counts.projected, counts.kept, counts.tower) == (
        288,
        288,
        576,
    )
    assert counts.ranked == (288,)


def test_where_a_reducer_stands_decides_what_it_saves() -> None:
    full = split(SEVEN, constant_counts(SEVEN))
    behind = split(SEVEN, method_counts(SEVEN, "prumerge", 144))
    assert behind["projector"] * 4 == full["projector"] and behind["tower"] == full["tower"]
    after = split(SEVEN, method_counts(SEVEN, "divprune", 144))
    assert after["projector"] == full["projector"] and after["prefill"] == behind["prefill"]
    before = split(SEVEN, method_counts(SEVEN, "downsample", 144))
    assert before["tower"] < full["tower"] / 4


def test_parts_published_as_not_counted_by_anyone() -> None:
    assert matrix_flops(tower(SEVEN.vision, 576, fused=False, blocks=24)) == pytest.approx(0.381e12, rel=0.003)
    assert matrix_flops(projector(((1024, 4096), (4096, 4096)), 576)) == pytest.approx(0.024e12, abs=0.0005e12)


def test_the_tower_and_one_layer_are_what_torch_counts() -> None:
    transformers = pytest.importorskip("transformers")
    vision, language = POCKET.vision, POCKET.language
    clip = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.intermediate,
            num_hidden_layers=vision.run,
            num_attention_heads=vision.heads,
            image_size=vision.image,
            patch_size=vision.patch,
        )
    )
    config = transformers.LlamaConfig(
        hidden_size=language.hidden,
        intermediate_size=language.intermediate,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads,
        head_dim=language.head_width,
        vocab_size=language.vocabulary,
    )
    config._attn_implementation = clip.config._attn_implementation = "eager"
    decoder = transformers.LlamaForCausalLM(config)

    def counted(action: object) -> int:
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            action()
        return counter.get_total_flops()

    pixels, ids = torch.zeros(1, 3, vision.image, vision.image), torch.zeros(1, 50, dtype=torch.long)
    assert sum(p.numel() for p in clip.parameters()) < vision.parameters
    assert counted(lambda: clip(pixel_values=pixels)) == matrix_flops(tower(vision, vision.patches, fused=False))
    ours = split(POCKET, constant_counts(POCKET, 10, 40))["prefill"]
    assert counted(lambda: decoder(ids, logits_to_keep=1)) == ours
    assert sum(p.numel() for p in decoder.parameters()) == language.parameters
    cache = decoder(ids, logits_to_keep=1).past_key_values
    step = counted(lambda: decoder(ids[:, :1], past_key_values=cache))
    assert step == matrix_flops(decode(language, [(50, language.layers)], HALF, fused=False))


def test_a_reducers_operations_are_the_formulas() -> None:
    """PruMerge: class query, all keys, the class row, K rows of cosines, and the mixing of P features into K."""
    images, width, kept = 577, 1024, 40
    expected = 2 * width * (width + images * width + images + (kept - 1) * 576 + kept * 576)
    assert reducer_flops(SEVEN, {"name": "prumerge"}, kept, 40) == pytest.approx(expected, rel=0.01)
    assert reducer_flops(SEVEN, {"name": "none"}, 576, 40) == 0


def test_ranking_costs_a_row_per_drop_and_keys_where_the_layer_has_not_run() -> None:
    row = 2 * 4096 * (4096 + 616)
    assert ranking_flops(SEVEN.language, method_counts(SEVEN, "fastv")) == row
    assert ranking_flops(SEVEN.language, method_counts(SEVEN, "vtw")) == 0
    lengths = [616, 328, 184]
    rows = sum(2 * 4096 * (4096 + n) + 2 * n * 4096**2 for n in lengths)
    assert ranking_flops(SEVEN.language, method_counts(SEVEN, "pyramiddrop")) == rows


def test_the_formula_of_papers_is_the_sum_of_the_operations() -> None:
    """VisPCO (ACL 2026): 24 n D^2 + 4 n^2 D a layer, for an FFN whose matrices have 8 D^2 in all."""
    from dataclasses import replace

    shape = replace(SEVEN.language, hidden=96, heads=4, kv_heads=4, head_width=24, intermediate=256)
    for tokens in (1, 17, 612):
        assert prefill_flops(shape, [tokens] * 3) == 3 * (24 * tokens * 96**2 + 4 * tokens**2 * 96)
    assert prefill_flops(shape, [0.5, 0]) == pytest.approx(24 * 0.5 * 96**2 + 4 * 0.25 * 96, abs=2)


def test_grouped_keys_cost_less() -> None:
    from dataclasses import replace

    grouped = replace(SEVEN.language, kv_heads=8)
    saved = layer_macs(SEVEN.language, 100, 3) - layer_macs(grouped, 100, 3)
    assert saved == 100 * 2 * 4096 * (4096 - 1024)
