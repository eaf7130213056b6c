"""The text the pocket language model learns from: scenes in words, restated, asked about and talked about.

A document is a list of segments with a loss weight each. Look-up ("what color is the star?") is what such a model learns last, so
every document is dense in look-ups: the scene is told once, then restated in other orders and phrasings, asked about many times,
or discussed in LLaVA's vicuna_v1 conversation format with its short-answer and option-letter instructions.

Some scenes are told in heaps: several words share one position of the sequence (the mean of their embeddings), an item fills several
positions, and some of its words are missing from some of them. It is still text, but it is laid out as patches of an image are. Most of
those are blurred by noise, as in NEFTune (Jain et al. 2023), so that the model's answers change smoothly with what a position holds:
a projector that puts a little of the right word into its tokens must be better off than one that puts none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from playground.pocket.facts import fact
from playground.pocket.questions import KINDS, LETTERS, PLURALS, Question, article, ask, ocr_line, with_options
from playground.pocket.scenes import (
    GRID,
    WORDS,
    Object,
    Scene,
    Word,
    caption,
    describe,
    place_name,
    scenes,
)

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CAPTION_PROMPTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
HINTS = ("Context: N/A", "Context: Look at the image.", "Look at the image.")
LOOKUPS = ("colour_of", "shape_of", "where_is", "what_at", "colour_at", "shape_at", "word_any", "word_at")
# What is learnt last is asked more often.
ASKED = (*KINDS, *("count_all",) * 2, *("count_shape",) * 4, *("count_colour",) * 2, *("relation",) * 5, *("arithmetic",) * 4,
         "commonsense", "position", "where_is")  # fmt: skip
# Every one of these needs two steps or more: a look-up, then a comparison, a count or a letter.
STEPS = ("relation", "relation", "count_shape", "count_colour", "count_all", "arithmetic", "commonsense", "position")
QUIET = 0.05  # weight of text that cannot be foreseen: it only teaches the language


@dataclass(frozen=True)
class Segment:
    """A stretch of text and the weight of its tokens in the loss."""

    text: str
    weight: float
    heaps: tuple[str, ...] = ()  # told in heaps, after `text`: each string's words share one position; "" holds no word
    blur: float = 0.0  # noise on the heaps, as a share of a word embedding's length


def tell(scene: Scene, rng: random.Random) -> str:
    """Puts a scene into words in one of many formats: sentences, keys before values, values before keys, a raster."""
    items: list[Object | Word] = [*scene.objects, *scene.words]
    form = rng.randrange(7)
    if form < 2:
        return caption(scene, rng)
    if form == 2:
        rng.shuffle(items)
        return " ".join(f"{item.place}: {_bare(item)}." for item in items)
    if form == 3:
        rng.shuffle(items)
        return " ".join(f"{_bare(item)}: {item.place}." for item in items)
    if form == 4:
        cells = [(row, col) for row in range(GRID) for col in range(GRID)]
        return " ".join(f"{place_name(*cell)}: {_bare(scene.at(*cell))}." for cell in cells)
    if form == 5:
        lines = [statement for item in items for statement in _full_statements(item, rng)]
        rng.shuffle(lines)
        return " ".join(lines)
    rng.shuffle(items)
    turned = rng.random() < 0.5
    return ", ".join(f"{item.place} {_bare(item)}" if turned else f"{_bare(item)} {item.place}" for item in items) + "."


def heap(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Tells a scene in heaps of words, in raster or in any order, with any number of empty places.

    Every item has one heap with all of its words; its other heaps lack some. Empty places are named or hold nothing at all.
    """
    most = rng.choice((1, 2, 4, 8, 16))
    made: list[tuple[int, int, str]] = []
    for item in (*scene.objects, *scene.words):
        parts = ["word", item.text] if isinstance(item, Word) else [item.colour, item.shape]
        whole = rng.randrange(repeats := rng.randint(1, most))
        for index in range(repeats):
            lost = rng.random() if index != whole else 1.0
            kept = parts[:1] if lost < 0.25 else parts[1:] if lost < 0.35 else parts
            made.append((item.row, item.col, " ".join((*kept, item.place))))
    free = [(row, col) for row in range(GRID) for col in range(GRID) if scene.at(row, col) is None]
    named = rng.random() < 0.5
    for row, col in rng.choices(free, k=rng.choice((0, 4, 8, 16, 40))):
        made.append((row, col, f"empty {place_name(row, col)}" if named else ""))
    rng.shuffle(made)
    if rng.random() < 0.5:
        made.sort(key=lambda entry: entry[:2])
    return tuple(text for *_, text in made)


def tell_segment(scene: Scene, rng: random.Random, heaped: float) -> Segment:
    """A scene told in heaps with chance `heaped`, else in words."""
    if rng.random() < heaped:
        return Segment("", 0.0, heap(scene, rng), rng.uniform(0.0, 1.6) if rng.random() < 0.75 else 0.0)
    return Segment(tell(scene, rng), QUIET)


def _bare(item: Object | Word | None) -> str:
    """The item in as few words as name it."""
    if item is None:
        return "empty"
    return f"word {item.text}" if isinstance(item, Word) else item.name


def _full_statements(item: Object | Word, rng: random.Random) -> list[str]:
    """One or two sentences that together tell everything about an item."""
    if isinstance(item, Word):
        return [f"the word {item.text} is at the {item.place}."]
    return rng.choice(
        (
            [f"the {item.name} is at the {item.place}."],
            [f"the object at the {item.place} is {describe(item)}."],
            [
                f"the object at the {item.place} is {item.colour}.",
                f"the shape at the {item.place} is {article(item.shape)}.",
            ],
        )
    )


def restate(scene: Scene, rng: random.Random, n: int) -> Iterator[tuple[str, str]]:
    """Yields n true sentences about a scene, each cut where it begins to say what can be looked up, counted or compared."""
    shapes = [item.shape for item in scene.objects]
    colours = [item.colour for item in scene.objects]
    for _ in range(n):
        if rng.random() < 0.35:
            yield _reckoned(scene, rng)
            continue
        if scene.words and rng.random() < 0.25:
            word = rng.choice(scene.words)
            yield rng.choice(
                (
                    (f"the word {word.text} is at the", f"{word.place}."),
                    (f"at the {word.place} is", f"the word {word.text}."),
                )
            )
            continue
        item = rng.choice(scene.objects)
        ways = [
            (f"at the {item.place} is", f"{describe(item)}."),
            (f"the object at the {item.place} is", f"{item.colour}."),
            (f"the shape at the {item.place} is", f"{article(item.shape)}."),
        ]
        if shapes.count(item.shape) == 1:
            ways += [(f"the {item.shape} is", f"{item.colour}."), (f"the {item.shape} is at the", f"{item.place}.")]
        if colours.count(item.colour) == 1:
            ways += [
                (f"the {item.colour} shape is", f"{article(item.shape)}."),
                (f"the {item.colour} shape is at the", f"{item.place}."),
            ]
        yield rng.choice(ways)


def _reckoned(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A true sentence that takes a comparison, a count or a sum."""
    names = [item.name for item in scene.objects]
    lone = [item for item in scene.objects if names.count(item.name) == 1]
    if len(lone) > 1 and rng.random() < 0.6:
        a, b = rng.sample(lone, 2)
        ways = [("is to the", "left" if a.col < b.col else "right")] if a.col != b.col else []
        ways += [("is", "above" if a.row < b.row else "below")] if a.row != b.row else []
        shapes = [item.shape for item in scene.objects]
        first, second = (x.shape if shapes.count(x.shape) == 1 and rng.random() < 0.5 else x.name for x in (a, b))
        said, side = rng.choice(ways)
        return f"from the {second} the {first} {said}", f"{side}."
    item, add = rng.choice(scene.objects), rng.randint(1, 3)
    ways_of = (
        ("the number of shapes is", len(scene.objects)),
        (f"the number of {item.colour} shapes is", len(scene.of(colour=item.colour))),
        (f"the number of {PLURALS[item.shape]} is", len(scene.of(shape=item.shape))),
        (f"the number of shapes plus {add} is", len(scene.objects) + add),
    )
    start, number = rng.choice(ways_of)
    return start, f"{number}."


def question(
    scene: Scene | None, rng: random.Random, kinds: tuple[str, ...] = ASKED, lettered: float = 0.25
) -> Question:
    """Asks about a scene in one of the benchmarks' forms: short answer, lettered options, with OCR tokens; or a plain fact."""
    if scene is None:
        asked = fact(rng)
        options = asked.kind == "fact_member" or rng.random() < 0.4
    else:
        asked = None
        while asked is None:
            asked = ask(rng.choice(kinds), scene, rng)
        options = rng.random() < lettered
    if options:
        most = min(len(LETTERS), len(asked.wrong) + 1)
        hint = rng.choice(HINTS) if rng.random() < 0.3 else ""
        return with_options(asked, rng, rng.randint(2, most), hint)
    if asked.kind.startswith("word") and rng.random() < 0.3:
        tokens = [word.text for word in scene.words]
        if rng.random() < 0.3:
            tokens[rng.randrange(len(tokens))] = rng.choice(WORDS)  # an OCR system errs now and then
        return Question(asked.kind, asked.text + ocr_line(tokens), asked.answer, asked.wrong)
    return asked


def questionnaire(
    scene: Scene,
    rng: random.Random,
    n: int,
    told: Segment,
    kinds: tuple[str, ...] = ASKED,
    lettered: float = 0.25,
    restated: float = 0.4,
) -> list[Segment]:
    """The scene, then n questions and answers with no conversation around them, mixed with restatements."""
    made = [told]
    for _ in range(n):
        if rng.random() < restated:
            for start, end in restate(scene, rng, 2):
                made += [Segment(f" {start}", QUIET), Segment(f" {end}", 1.0)]
        else:
            asked = question(scene, rng, kinds, lettered)
            made += [Segment(f"\n{asked.text}", QUIET), Segment(f" {asked.answer}</s>", 1.0)]
    return made


def conversation(
    scene: Scene | None,
    rng: random.Random,
    n: int,
    told: tuple[Segment, ...] = (),
    system: bool = True,
    kinds: tuple[str, ...] = ASKED,
    lettered: float = 0.25,
) -> list[Segment]:
    """A vicuna_v1 conversation whose first message holds the scene; with no scene it asks for plain facts."""
    made = [Segment(f"{SYSTEM} " if system else "", QUIET)]
    suffix_each = rng.random() < 0.5
    for turn in range(n):
        if scene is not None and turn == 0 and rng.random() < 0.1:
            text, answer = rng.choice(CAPTION_PROMPTS), caption(scene, rng)
        else:
            asked = question(scene, rng, kinds, lettered)
            instructed = asked.letters or suffix_each or turn == 0
            text, answer = (asked.prompt if instructed else asked.text), asked.answer
        lead, body = "USER: ", f"{text} ASSISTANT:"
        if turn == 0 and told:
            made += [Segment(lead, QUIET), *told]
            lead = "\n"
        made += [Segment(lead + body, QUIET), Segment(f" {answer}</s>", 1.0)]
    return made


def document(
    rng: random.Random,
    stream: Iterator[Scene],
    formal: float = 0.5,
    heaped: float = 0.0,
    kinds: tuple[str, ...] = ASKED,
    lettered: float = 0.25,
    restated: float = 0.4,
    turns: tuple[int, int] = (6, 9),
) -> list[Segment]:
    """Draws one document.

    Args:
        rng: source of every choice but the scenes.
        stream: the scenes.
        formal: share of documents in conversation format.
        heaped: share of the scenes told in heaps.
        kinds: of the questions.
        lettered: share of the questions with lettered options.
        restated: share of restatements in documents without conversation.
        turns: smallest and largest number of questions.
    """
    n = rng.randint(*turns)
    if kinds == ASKED and rng.random() < 0.12:
        return conversation(None, rng, n + 3, system=rng.random() < 0.5)
    if rng.random() >= formal:
        scene = next(stream)
        told = tell_segment(scene, rng, heaped)
        if (
            rng.random() < 0.25
        ):  # described again, at once or on a new line, as captions follow images in LLaVA's plain template
            said = caption(scene, rng) if rng.random() < 0.5 else tell(scene, rng)
            return [told, Segment(rng.choice(("", "", "\n", " ")), QUIET), Segment(said, 1.0)]
        return questionnaire(scene, rng, n, told, kinds, lettered, restated)
    scene = next(stream)
    told = (tell_segment(scene, rng, heaped),)
    if rng.random() < 0.15:  # told twice: longer contexts, and the order of what is seen must not matter
        told = (*told, Segment(" ", QUIET), tell_segment(scene, rng, heaped))
    return conversation(scene, rng, n, told, rng.random() < 0.6, kinds, lettered)


def corpus(split: str, seed: int, n: int) -> Iterator[str]:
    """Yields n documents as plain text, e.g. to train the tokenizer on."""
    rng = random.Random(f"corpus/{seed}")
    stream = scenes(split, seed)
    for _ in range(n):
        yield "".join(segment.text for segment in document(rng, stream))
