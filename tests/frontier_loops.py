"""The rules of the frontier's vision methods for one image, written out plainly: loops over tokens, Python's numbers, no tensors.

Every function takes lists and gives raster indices in the order in which tokens leave. Of equal scores the lower index goes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def dot(one: Row, other: Row) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def cosine(one: Row, other: Row) -> float:
    return dot(one, other) / math.sqrt(dot(one, one) * dot(other, other))


def falling(scores: Row, among: Sequence[int] | None = None) -> list[int]:
    """Indices by falling score."""
    return sorted(range(len(scores)) if among is None else among, key=lambda at: (-scores[at], at))


def scope(attention: Row, points: Sequence[Row], size: int, alpha: float = 1.0, add: bool = False) -> list[int]:
    patches = range(len(points))
    alike = [[cosine(points[u], points[v]) for v in patches] for u in patches]
    cover, chosen = [0.0] * len(points), []
    for _ in range(size):
        gains = {}
        for v in patches:
            if v not in chosen:
                raised = math.fsum(max(0.0, alike[u][v] - cover[u]) for u in patches)
                gains[v] = raised + attention[v] ** alpha if add else raised * attention[v] ** alpha
        chosen.append(max(gains, key=lambda v: (gains[v], -v)))
        cover = [max(cover[u], alike[u][chosen[-1]]) for u in patches]
    return sorted(chosen)


def vispruner(attention: Row, points: Sequence[Row], size: int, ratio: float) -> list[int]:
    order, important = falling(attention), int(size * ratio)
    left, wanted = order[important:], size - important
    while wanted and len(left) > wanted:
        even, odd = left[0::2], left[1::2]
        gone = min(8, len(left) - wanted, len(even))
        best = [max(cosine(points[e], points[o]) for o in odd) for e in even]
        by_likeness = [even[at] for at in falling(best)]
        left = by_likeness[gone:] + odd
    return sorted(order[:important] + (left if wanted else []))


def holov(attention: Row, points: Sequence[Row], size: int, crops: int = 16) -> list[int]:
    """Without the places that a full crop leaves empty."""
    patches, begin, scores, parts = len(points), 0, [], []
    crops = min(crops, patches)
    for crop in range(crops):
        width = patches // crops + (crop < patches % crops)
        part = list(range(begin, begin + width))
        begin += width
        parts.append(part)
        if width == 1:
            scores.append(attention[part[0]])
            continue
        unit = {i: [x / (math.sqrt(dot(points[i], points[i])) + 1e-6) for x in points[i]] for i in part}
        alike = {(i, j): 0.0 if i == j else dot(unit[i], unit[j]) for i in part for j in part}
        means = {i: sum(alike[i, j] for j in part) / (width - 1) for i in part}
        spread = {i: sum((alike[i, j] - means[i]) ** 2 for j in part) / (width - 1) for i in part}
        level = sum(1000 * attention[i] for i in part) / width
        scale = level / (sum(spread.values()) / width + 1e-6)
        scores.append(sum(1000 * attention[i] + 0.09 * spread[i] * scale for i in part) / width)
    weights = [score / (sum(scores) + 1e-6) for score in scores]
    quotas = [math.floor(weight * size) for weight in weights]
    for crop in falling(weights)[: size - sum(quotas)]:
        quotas[crop] += 1
    kept = []
    for part, quota in zip(parts, quotas, strict=True):
        kept += part if quota >= len(part) else falling(attention, part)[:quota]
    return kept[:size]


def softmax(values: Row) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def mmtok(points: Sequence[Row], words: Sequence[Row], size: int, excluded: Sequence[int] = ()) -> list[int]:
    """Points stand for both sides of the projector. Excluded patches come only where nothing else is left."""
    patches = range(len(points))
    rows = [[p / len(words) for p in softmax([cosine(word, y) / 0.02 for y in points])] for word in words]
    rows += [[0.5 * p / len(points) for p in softmax([cosine(x, y) / 0.2 for y in points])] for x in points]
    best, chosen = [0.0] * len(rows), []
    for _ in range(size):
        open_to = [v for v in patches if v not in chosen and v not in excluded]
        if not open_to:
            chosen.append(next(v for v in patches if v not in chosen))
            continue
        gains = {v: math.fsum(max(0.0, row[v] - b) for row, b in zip(rows, best, strict=True)) for v in open_to}
        chosen.append(max(gains, key=lambda v: (gains[v], -v)))
        best = [max(b, row[chosen[-1]]) for row, b in zip(rows, best, strict=True)]
    return sorted(chosen)


def cdpruner(points: Sequence[Row], clip: Sequence[Row], texts: Sequence[Row], size: int) -> list[int]:
    """As long as the kernel's rank lasts."""
    patches = range(len(points))
    relevance = [-sum(cosine(clip[i], text) for text in texts) / len(texts) for i in patches]
    low, high = min(relevance), max(relevance)
    relevance = [(r - low + 1e-6) / (high - low) for r in relevance]
    kernel = [[relevance[i] * cosine(points[i], points[j]) * relevance[j] for j in patches] for i in patches]
    left, rows, chosen = [kernel[i][i] for i in patches], [], []
    for _ in range(size):
        j = falling(left)[0]
        row = [(kernel[j][i] - sum(r[j] * r[i] for r in rows)) / math.sqrt(left[j]) for i in patches]
        left = [-math.inf if i == j else d - e * e for i, (d, e) in enumerate(zip(left, row, strict=True))]
        rows.append(row)
        chosen.append(j)
    return sorted(chosen)


def trim(clip: Sequence[Row], text: Row, number: int | None) -> tuple[list[int], list[int]]:
    """What stays, and what the mean is of. No number: as many as there are outliers."""
    scores = softmax([-dot(patch, text) for patch in clip])
    if number is None:
        ordered = sorted(scores)

        def quantile(share: float) -> float:
            place = share * (len(ordered) - 1)
            below = math.floor(place)
            return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])

        first, third = quantile(0.25), quantile(0.75)
        number = sum(score > third + 1.5 * (third - first) for score in scores)
    kept = sorted(falling(scores)[:number])
    return kept, [at for at in range(len(clip)) if at not in kept]


def vscan(early: Row, late: Row, points: Sequence[Row], side: int, size: int) -> tuple[list[int], list[list[int]]]:
    """Windows of 6 x 6 on a square that they divide. -> what stays, and the patches that each token is the mean of"""
    half, across = size // 2, side // 6
    local = []
    for row in range(across):
        for column in range(across):
            window = [r * side + c for r in range(6 * row, 6 * row + 6) for c in range(6 * column, 6 * column + 6)]
            local += falling(early, window)[: half // across**2]
    rest = [at for at in range(len(points)) if at not in local]
    kept = sorted(local + falling(late, rest)[: size - half])
    groups = {at: [at] for at in kept}
    for at in rest:
        if at not in groups:
            groups[max(kept, key=lambda one: (cosine(points[at], points[one]), -one))].append(at)
    return kept, [groups[at] for at in kept]


def trimtokenator(points: Sequence[Row], words: Sequence[Row], first: int, size: int) -> list[int]:
    far = [
        sum(sum((a - b) ** 2 for a, b in zip(y, word, strict=True)) for word in words) / max(1, len(words))
        for y in points
    ]
    near = falling([-one for one in far])[:first]
    alike = {(i, j): cosine(points[i], points[j]) for i in near for j in near}
    chosen = [min(near, key=lambda i: (sum(alike[i, j] for j in near), i))]
    while len(chosen) < size:
        open_to = [i for i in near if i not in chosen]
        chosen.append(min(open_to, key=lambda i: (sum(alike[i, j] for j in chosen) / len(chosen), i)))
    return sorted(chosen)


def prunesid(
    attention: Row, points: Sequence[Row], groups: Sequence[int], number: int, size: int
) -> tuple[list[int], list[int]]:
    """Patches beside the class token, group by group. Groups are given: which component a patch loads on most.

    -> what stays, and the quota of each group
    """
    patches = len(points)
    alike = [[cosine(one, other) for other in points] for one in points]
    pairs = [(i, j) for i in range(patches) for j in range(i + 1, patches)]
    threshold = size / 32 * sum(alike[i][j] for i, j in pairs) / len(pairs)
    ranked, survivors = [], []
    for group in range(number):
        members, taken, dropped = falling(attention, [i for i in range(patches) if groups[i] == group]), [], []
        while members:
            best, *members = members
            taken.append(best)
            dropped += [i for i in members if alike[best][i] > threshold]
            members = [i for i in members if alike[best][i] <= threshold]
        ranked.append(taken + falling(attention, dropped))
        survivors.append(len(taken))
    sizes = [len(members) for members in ranked]
    low = [min(1, n) for n in sizes]
    cap = [min(5 * math.ceil(size / 64), n, s) for n, s in zip(sizes, survivors, strict=True)]
    while sum(cap) < size:
        cap = [min(c + 1, n) for c, n in zip(cap, sizes, strict=True)]
    spare, before, running, quota = max(0, size - sum(low) - 1), 0, 0, []
    for group in range(number):
        running += survivors[group]
        end = round(spare * running / sum(survivors))
        quota.append(min(low[group] + end - before, cap[group]))
        before = end
    for group in falling(survivors):
        quota[group] += min(cap[group] - quota[group], max(0, size - 1 - sum(quota)))
    return [at for members, count in zip(ranked, quota, strict=True) for at in members[:count]], quota


def hired(first: Row, own: Sequence[Row], rate: float, alpha: float) -> list[list[int]]:
    """The view of the whole, then its tiles, of one image."""
    views, patches = len(own), len(own[0])
    total = int(views * patches * rate)
    if views == 1:
        return [sorted(falling(own[0])[:total])]
    full = min(int(total * alpha), patches)
    sub = min(total - full, (views - 1) * patches)
    marks = falling(first)[: int(patches * (1 - alpha))]
    kept = [sorted(falling(own[0])[:full])]
    for tile in range(views - 1):
        band = range(tile * patches // (views - 1), (tile + 1) * patches // (views - 1))
        share = sum(mark in band for mark in marks) / len(marks)
        kept.append(sorted(falling(own[tile + 1])[: min(int(share * sub), patches)]))
    return kept


def flowcut(
    query: Row, keys: Sequence[Row], values: Sequence[Row], heads: int, before: Row | None, left: int, wanted: int
) -> tuple[list[int], list[float]]:
    """After a block on the class token (first of keys and values) and the patches there are. -> those that stay, all scores"""
    number, width = len(keys) - 1, len(query) // heads

    def received(one: Row, others: Sequence[Row], scale: float) -> list[float]:
        rows = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            rows.append(softmax([scale * dot(one[part], other[part]) for other in others]))
        return [sum(row[at] for row in rows) / heads for at in range(1, number + 1)]

    attention, echo = received(query, keys, width**-0.5), received(values[0], values, 1.0)
    running = []
    for at in range(number):
        of_heads = [values[at + 1][head * width : (head + 1) * width] for head in range(heads)]
        norm = sum(abs(sum(one[c] for one in of_heads) / heads) for c in range(width))
        score = (attention[at] / sum(attention) + echo[at] / sum(echo)) * norm
        running.append(score if before is None else 0.5 * before[at] + 0.5 * score)
    stay = number
    if left % 2 == 0 and number > wanted:
        drop = number - wanted
        if left:
            shares = [one / sum(attention) for one in attention]
            entropy = -sum(share * math.log(share) for share in shares)
            drop = round(drop / math.sqrt(left) * (1 - (entropy / math.log(number)) ** 2))
        stay = max(number - drop, wanted)
    return sorted(falling(running)[:stay]), running
