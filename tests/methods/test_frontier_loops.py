"""The frontier's vision methods against their rules in loops: sizes, grids, ties and extremes that no golden array shows."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import frontier_loops as loops
import pytest
import torch
from torch import Tensor
from vision_tokens import make_tokens

from llava_prumerge.methods.base import Earlier, VisionTokens
from llava_prumerge.methods.image_tokens import TowerBlock
from llava_prumerge.methods.registry import build_reducer
from llava_prumerge.ops.groups import component_labels

CASES = [  # grid, budget, what is special
    ((5, 7), 9, ""),
    ((1, 17), 3, ""),
    ((3, 4), 1, ""),
    ((6, 6), 2, ""),
    ((6, 6), 35, ""),
    ((6, 6), 36, ""),
    ((7, 5), 20, "equal attention"),
    ((6, 6), 10, "equal features"),
    ((4, 5), 7, "two kinds"),
]
IMAGES = 2


def made(grid: tuple[int, int], special: str, width: int = 48) -> VisionTokens:
    """Tokens; of some cases with attention, or features, that are the same everywhere, or of two kinds, in exact numbers."""
    patches = grid[0] * grid[1]
    logits = torch.zeros(IMAGES, patches) if special == "equal attention" else None
    image = make_tokens(IMAGES, grid, width=width, seed=patches, logits=logits)
    if special in ("equal features", "two kinds"):
        kind = torch.arange(patches) % 2 * (special == "two kinds")
        image.features = torch.eye(width)[kind].expand(IMAGES, -1, -1).clone()
    return image


def origins(image: VisionTokens, name: str, **settings: Any) -> list[list[int]]:
    """Patches of each image, in the order in which tokens leave."""
    _, valid, origin = build_reducer({"name": name, **settings})(image)
    return [row[real].tolist() for row, real in zip(origin, valid, strict=True)]


def attention_of(image: VisionTokens) -> list[list[float]]:
    return image.attention(per_head=True, own=True).tolist()


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.5}, {"alpha": 2.0}, {"combine": "add"}], ids=str)
@pytest.mark.parametrize("grid, budget, special", [case for case in CASES if case[2] != "equal attention"])
def test_scope(grid: tuple[int, int], budget: int, special: str, settings: dict[str, Any]) -> None:
    """But for equal attention: two patches that only cover each other then have one gain, and rounding chooses."""
    image = made(grid, special)
    given = {"alpha": settings.get("alpha", 1.0), "add": "combine" in settings}
    for index, kept in enumerate(origins(image, "scope", budget=budget, **settings)):
        saliency = [image.heads * one for one in attention_of(image)[index]]
        assert kept == loops.scope(saliency, image.features[index].tolist(), budget, **given)


@pytest.mark.parametrize("ratio", [0.0, 0.33, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("grid, budget, special", [*CASES, ((8, 8), 12, "")])
def test_vispruner(grid: tuple[int, int], budget: int, special: str, ratio: float) -> None:
    image = made(grid, special)
    for index, kept in enumerate(origins(image, "vispruner", budget=budget, important_ratio=ratio)):
        assert kept == loops.vispruner(attention_of(image)[index], image.features[index].tolist(), budget, ratio)


@pytest.mark.parametrize("number", [16, 5, 1])
@pytest.mark.parametrize("grid, budget, special", CASES)
def test_holov(grid: tuple[int, int], budget: int, special: str, number: int) -> None:
    image = made(grid, special)
    for index, kept in enumerate(origins(image, "holov", budget=budget, number=number, count="released")):
        assert kept == loops.holov(attention_of(image)[index], image.features[index].tolist(), budget, number)


@pytest.mark.parametrize("excluded", [0, 8])
@pytest.mark.parametrize("words", [1, 4])
@pytest.mark.parametrize("grid, budget, special", CASES)
def test_mmtok(grid: tuple[int, int], budget: int, special: str, words: int, excluded: int) -> None:
    """Prompts of two lengths in one batch."""
    image = made(grid, special)
    text, mask = image.prompt()
    mask = torch.arange(5) < torch.tensor([[words], [5]])
    image.prompt = lambda: (text, mask)
    out = torch.arange(grid[0] * grid[1]) < excluded
    image.padding = lambda: out.expand(IMAGES, -1)
    image.unprojected = image.features
    for index, kept in enumerate(origins(image, "mmtok", budget=budget)):
        asked = text[index][mask[index]].tolist()
        assert kept == loops.mmtok(image.features[index].tolist(), asked, budget, range(excluded))


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize(
    "grid, budget, special", [case for case in CASES if "features" not in case[2] and "kinds" not in case[2]]
)
def test_cdpruner(grid: tuple[int, int], budget: int, special: str, texts: int) -> None:
    """The kernel has full rank, so that the rule says which comes next to the last one, also among those that hardly matter."""
    image, patches = made(grid, special), grid[0] * grid[1]
    generator = torch.Generator().manual_seed(budget)
    clip, said = (torch.randn(IMAGES, number, 6, generator=generator) for number in (patches, 3))
    clip[1] = said[1].sum(dim=0) + 0.02 * clip[1]  # but for one the patches of the second image are near the question
    clip[1, 0] *= -1
    image.features[1] = image.features[1, :1] + 0.5 * image.features[1]  # and alike, so that diversity decides
    real = torch.arange(3) < torch.tensor([[texts], [3]])
    image.clip = lambda: (clip, said, real)
    for index, kept in enumerate(origins(image, "cdpruner", budget=budget)):
        asked = said[index][real[index]].tolist()
        assert kept == loops.cdpruner(image.features[index].tolist(), clip[index].tolist(), asked, budget)


@pytest.mark.parametrize("ratio", [None, 0, "1/8", 0.5, "34/35"])
@pytest.mark.parametrize("same", [False, True])
def test_trim(ratio: Any, same: bool) -> None:
    image = made((5, 7), "")
    generator = torch.Generator().manual_seed(0)
    clip, said = (torch.randn(IMAGES, number, 6, generator=generator) for number in (35, 1))
    clip = torch.ones_like(clip) if same else clip
    image.clip = lambda: (clip, said, torch.ones(IMAGES, 1, dtype=torch.bool))
    features, valid, _ = build_reducer({"name": "trim", "ratio": ratio})(image)
    number = None if ratio is None else int(35 * Fraction(ratio))
    for index in range(IMAGES):
        kept, rest = loops.trim(clip[index].tolist(), said[index, 0].tolist(), number)
        points = image.features[index]
        wanted = torch.cat([points[kept], points[rest].mean(dim=0, keepdim=True)])
        torch.testing.assert_close(features[index][valid[index]], wanted)


@pytest.mark.parametrize("side, budget", [(12, 9), (12, 24), (12, 1), (12, 143), (18, 40)])
def test_vscan(side: int, budget: int) -> None:
    image, other = make_tokens(IMAGES, (side, side), seed=1), make_tokens(IMAGES, (side, side), seed=2)
    late, early = image.projections(), other.projections()
    image.projections = lambda own=False: early if isinstance(own, Earlier) else late
    features, valid, origin = build_reducer({"name": "vscan", "budget": budget, "count": "released"})(image)
    below = image.attention(per_head=True, own=Earlier(Fraction(5, 22))).tolist()
    for index in range(IMAGES):
        points = image.features[index]
        kept, groups = loops.vscan(below[index], attention_of(image)[index], points.tolist(), side, budget)
        assert origin[index][valid[index]].tolist() == kept
        means = torch.stack([points[members].mean(dim=0) for members in groups])
        torch.testing.assert_close(features[index][valid[index]], means)


@pytest.mark.parametrize("words", [0, 1, 5])
@pytest.mark.parametrize("grid, budget, special", CASES)
def test_trimtokenator(grid: tuple[int, int], budget: int, special: str, words: int) -> None:
    image, patches = made(grid, special), grid[0] * grid[1]
    text, _ = image.prompt()
    mask = torch.arange(5) < torch.tensor([[words], [5]])
    image.prompt = lambda: (text, mask)
    for index, kept in enumerate(origins(image, "trimtokenator", budget=budget)):
        first = max(budget, int(0.8 * patches))
        asked = text[index][mask[index]].tolist()
        assert kept == loops.trimtokenator(image.features[index].tolist(), asked, first, budget)


@pytest.mark.parametrize(
    "grid, budget, special", [*(case for case in CASES if case[1] not in (1, 36)), ((9, 9), 70, "")]
)
def test_prunesid(grid: tuple[int, int], budget: int, special: str) -> None:
    """Behind the components, which are the library's; the class token is the first of the tokens."""
    image = made(grid, special)
    groups, number = component_labels(image.features.sigmoid(), max(1, budget // 4))
    for index, kept in enumerate(origins(image, "prunesid", budget=budget)):
        points = image.features[index].tolist()
        wanted, quota = loops.prunesid(attention_of(image)[index], points, groups[index].tolist(), number, budget)
        assert sum(quota) == budget - 1 and kept == [-1, *wanted]


@pytest.mark.parametrize("rate, alpha", [(0.2, 0.5), (0.5, 0.25), (0.9, 0.75), (0.1, 0.5)])
@pytest.mark.parametrize("tiles", [1, 3, 5])
def test_hired(tiles: int, rate: float, alpha: float) -> None:
    image, other = make_tokens(tiles, (6, 8), seed=1), make_tokens(tiles, (6, 8), seed=2)
    late, early = image.projections(), other.projections()
    image.projections = lambda own=False: early if isinstance(own, Earlier) else late
    image.overview = torch.zeros(tiles, dtype=torch.long)
    first = image.attention(per_head=True, own=Earlier(Fraction(0)))[0].tolist()
    wanted = loops.hired(first, attention_of(image), rate, alpha)
    for own, kept in zip(wanted, origins(image, "hired", keep_ratio=rate, alpha=alpha), strict=True):
        assert kept == own or (not own and len(kept) == 1), "a tile keeps one token at least"


def test_the_means_of_clusters_are_of_what_is_nearest() -> None:
    """SparseVLM's clusters: density of the nearest, the distance to a denser one, the nearest centre; one distance at a time."""
    for budget, points in ((1, torch.randn(1, 9, 4)), (9, torch.randn(1, 9, 4)), (4, torch.ones(1, 9, 4))):
        image = make_tokens(1, (3, 3), width=4)
        image.features = points
        features, valid, origin = build_reducer(
            {"name": "dpc_knn", "budget": budget, "neighbours": None, "order": "fitness"}
        )(image)
        assert origin[0].tolist() == clusters_of(points[0], budget, features[0]) and valid.all()


def clusters_of(points: Tensor, number: int, means: Tensor) -> list[int]:
    """Centres, best first, after a look at the means."""
    among = range(len(points))
    far = [[float((points[i] - points[j]).norm()) / points.shape[1] ** 0.5 for j in among] for i in among]
    dense = [-sum(sorted(one**2 for one in row)[:number]) / number for row in far]
    fit = []
    for i in among:
        denser = [far[i][j] for j in among if (dense[j], -j) > (dense[i], -i)]
        fit.append(float(torch.tensor(dense[i]).exp()) * (min(denser) if denser else max(far[i])))
    centres = loops.falling(fit)[:number]
    groups = {centre: [centre] for centre in centres}
    for i in among:
        if i not in groups:
            groups[min(centres, key=lambda centre: (far[i][centre], centres.index(centre)))].append(i)
    torch.testing.assert_close(means, torch.stack([points[groups[centre]].mean(dim=0) for centre in centres]))
    return centres


@pytest.mark.parametrize("left", [0, 1, 2, 4])
@pytest.mark.parametrize("budget, carries", [(1, False), (5, True), (11, True), (12, False)])
def test_flowcut(budget: int, carries: bool, left: int) -> None:
    """Two images of which one has lost more patches before."""
    generator = torch.Generator().manual_seed(left)
    keys, values = (2 * torch.randn(2, 13, 8, generator=generator) for _ in range(2))
    queries, held = torch.randn(2, 1, 8, generator=generator), torch.rand(2, 12, generator=generator)
    real = torch.arange(12) < torch.tensor([[12], [7]])
    block = TowerBlock(queries, keys, values, 2, real, held if carries else None, left, 12)
    keep, running = build_reducer({"name": "flowcut", "budget": budget}).cut(block)
    for index, number in enumerate((12, 7)):
        if budget == 12:
            assert keep is running is None
            continue
        given = (keys[index, : number + 1].tolist(), values[index, : number + 1].tolist(), 2)
        before = held[index, :number].tolist() if carries else None
        kept, scores = loops.flowcut(queries[index, 0].tolist(), *given, before, left, budget)
        torch.testing.assert_close(running[index, :number], torch.tensor(scores), atol=1e-5, rtol=1e-4)
        found = kept if keep is None else keep[index].nonzero()[:, 0].tolist()
        assert found == kept and (keep is None) == bool(left % 2)
