"""Questions about no image: sides of shapes, mixed colors, kinds of words, small sums."""

from __future__ import annotations

import random
from dataclasses import replace

from playground.pocket.questions import KIND_OF_WORD, SIDES, Question, article, count_question, tempting
from playground.pocket.scenes import SHAPES, WORDS, WORDS_BY_KIND

MIXES = {("red", "yellow"): "orange", ("yellow", "blue"): "green", ("red", "blue"): "purple",
         ("red", "white"): "pink", ("orange", "black"): "brown"}  # fmt: skip


def fact(rng: random.Random) -> Question:
    """A question that needs no image: sides of shapes, mixed colors, kinds of words, small sums."""
    form = rng.choice(("sides", "mix", "kind", "member", "sum"))
    if form == "sides":
        shape = rng.choice(SHAPES)
        numbers = tuple(sorted({str(n) for n in SIDES.values()}))
        answer = str(SIDES[shape])
        text = f"How many straight sides does {article(shape)} have?"
        return Question("fact_sides", text, answer, tempting(answer, [], numbers, rng))
    if form == "mix":
        pair = rng.choice(sorted(MIXES))
        a, b = rng.sample(pair, 2)
        text = f"Which color do you get when you mix {a} and {b}?"
        return Question("fact_mix", text, MIXES[pair], tempting(MIXES[pair], [], tuple(MIXES.values()), rng))
    if form == "kind":
        word = rng.choice(WORDS)
        text = f"What kind of thing is {word}?"
        return Question(
            "fact_kind", text, KIND_OF_WORD[word], tempting(KIND_OF_WORD[word], [], tuple(WORDS_BY_KIND), rng)
        )
    if form == "member":
        kind = rng.choice(tuple(WORDS_BY_KIND))
        answer = rng.choice(WORDS_BY_KIND[kind])
        wrong = [word for word in WORDS if KIND_OF_WORD[word] != kind]
        return Question("fact_member", f"Which of these names {article(kind)}?", answer, tuple(rng.sample(wrong, 4)))
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    return replace(count_question("fact_sum", f"What is {a} plus {b}?", a + b, rng), wrong=tuple(
        sorted((str(n) for n in range(2, 13) if n != a + b), key=lambda n: (abs(int(n) - a - b), rng.random()))))  # fmt: skip
