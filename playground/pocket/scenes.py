"""The pocket world's scenes: what can be in one, how one is drawn at random, named in words and rendered to 96 x 96 pixels.

A scene is one to four coloured shapes and up to two printed words in distinct cells of a 3 x 3 grid. Train, validation and
test are disjoint by construction: the split of a scene is a hash of what it shows, not of the seed that drew it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 96
GRID = 3
CELL = SIZE // GRID
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 38),
    "orange": (245, 140, 24),
    "yellow": (240, 216, 32),
    "green": (36, 150, 62),
    "blue": (36, 84, 214),
    "purple": (128, 44, 168),
    "pink": (248, 128, 188),
    "brown": (112, 66, 32),
}
WORDS_BY_KIND: dict[str, tuple[str, ...]] = {
    "animal": ("CAT", "DOG", "OWL", "FOX"),
    "food": ("EGG", "JAM", "PIE", "HAM"),
    "tool": ("KEY", "BOX", "MAP", "CUP"),
    "vehicle": ("BUS", "VAN"),
    "weather": ("SUN", "SKY"),
}
WORDS = tuple(word for kind in WORDS_BY_KIND.values() for word in kind)
PLACES = (
    ("top left", "top center", "top right"),
    ("middle left", "center", "middle right"),
    ("bottom left", "bottom center", "bottom right"),
)
SPLITS = ("train", "validation", "test")
Ink = tuple[int, ...] | int

# A 3 x 5 pixel font for the capital letters, one string of rows per letter; drawn 2 pixels wide and 3 tall per dot.
GLYPHS = {
    "A": "010 101 111 101 101", "B": "110 101 110 101 110", "C": "011 100 100 100 011", "D": "110 101 101 101 110",
    "E": "111 100 110 100 111", "F": "111 100 110 100 100", "G": "011 100 101 101 011", "H": "101 101 111 101 101",
    "I": "111 010 010 010 111", "J": "001 001 001 101 010", "K": "101 101 110 101 101", "L": "100 100 100 100 111",
    "M": "101 111 111 101 101", "N": "110 101 101 101 101", "O": "010 101 101 101 010", "P": "110 101 110 100 100",
    "Q": "010 101 101 110 011", "R": "110 101 110 110 101", "S": "011 100 010 001 110", "T": "111 010 010 010 010",
    "U": "101 101 101 101 111", "V": "101 101 101 101 010", "W": "101 101 111 111 101", "X": "101 101 010 101 101",
    "Y": "101 101 010 010 010", "Z": "111 001 010 100 111",
}  # fmt: skip
DOT_WIDTH, DOT_HEIGHT, LETTER_GAP = 2, 3, 3


@dataclass(frozen=True, order=True)
class Object:
    """One coloured shape in one cell."""

    shape: str
    colour: str
    row: int
    col: int

    @property
    def name(self) -> str:
        """The noun phrase without article, e.g. "red star"."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """The cell in words, e.g. "top left"."""
        return place_name(self.row, self.col)


@dataclass(frozen=True, order=True)
class Word:
    """One printed word in one cell."""

    text: str
    row: int
    col: int

    @property
    def place(self) -> str:
        """The cell in words, e.g. "top left"."""
        return place_name(self.row, self.col)


@dataclass(frozen=True)
class Scene:
    """What an image shows. Objects and words are kept in raster order, so equal content means equal scenes."""

    objects: tuple[Object, ...]
    words: tuple[Word, ...] = ()

    def __post_init__(self) -> None:
        cells = [(item.row, item.col) for item in (*self.objects, *self.words)]
        if len(set(cells)) != len(cells):
            raise ValueError(f"a scene wants at most one item per cell, got {cells}")
        for name in ("objects", "words"):
            raster = tuple(sorted(getattr(self, name), key=lambda item: (item.row, item.col)))
            object.__setattr__(self, name, raster)

    @property
    def key(self) -> str:
        """A canonical one-line description: equal for equal content, whatever drew the scene."""
        shapes = (f"{item.colour}-{item.shape}@{item.row}{item.col}" for item in self.objects)
        words = (f"{item.text}@{item.row}{item.col}" for item in self.words)
        return " ".join((*shapes, *words))

    def at(self, row: int, col: int) -> Object | Word | None:
        """What lies in a cell, or None."""
        for item in (*self.objects, *self.words):
            if (item.row, item.col) == (row, col):
                return item
        return None

    def of(self, shape: str | None = None, colour: str | None = None) -> tuple[Object, ...]:
        """The objects of a shape and/or a colour."""
        return tuple(o for o in self.objects if shape in (None, o.shape) and colour in (None, o.colour))


def place_name(row: int, col: int) -> str:
    """Names a cell: "top left" ... "center" ... "bottom right"."""
    return PLACES[row][col]


def sample_scene(
    rng: random.Random, objects: tuple[int, int] = (1, 4), words: tuple[int, int] | None = None, repeat: float = 0.3
) -> Scene:
    """Draws a scene.

    Args:
        rng: source of every choice.
        objects: smallest and largest number of objects.
        words: smallest and largest number of printed words; None means 0, 1 or 2 with chances 0.5, 0.3 and 0.2.
        repeat: chance that an object after the first takes the colour, or the shape, of an earlier one.
    """
    n_objects = rng.randint(*objects)
    n_words = rng.choices((0, 1, 2), (0.5, 0.3, 0.2))[0] if words is None else rng.randint(*words)
    cells = rng.sample([(row, col) for row in range(GRID) for col in range(GRID)], n_objects + n_words)
    made: list[Object] = []
    for row, col in cells[:n_objects]:
        shape, colour = rng.choice(SHAPES), rng.choice(tuple(COLOURS))
        if made and rng.random() < repeat:
            earlier = rng.choice(made)
            if rng.random() < 0.5:
                shape = earlier.shape
            else:
                colour = earlier.colour
        made.append(Object(shape, colour, row, col))
    texts = rng.sample(WORDS, n_words)
    placed = (Word(text, row, col) for text, (row, col) in zip(texts, cells[n_objects:], strict=True))
    return Scene(tuple(made), tuple(placed))


def split_of(scene: Scene) -> str:
    """The one split a scene belongs to: 80% train, 10% validation, 10% test, by a hash of its content."""
    bucket = int.from_bytes(hashlib.sha256(scene.key.encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def scenes(
    split: str,
    seed: int,
    n: int | None = None,
    *,
    objects: tuple[int, int] = (1, 4),
    words: tuple[int, int] | None = None,
    repeat: float = 0.3,
    accept: Callable[[Scene], bool] | None = None,
    unique: bool = False,
) -> Iterator[Scene]:
    """Yields n scenes of a split (endless when n is None), the same ones for the same arguments.

    Args:
        split: "train", "validation" or "test".
        seed: of the whole stream.
        n: how many.
        objects, words, repeat: as in `sample_scene`.
        accept: keeps only the scenes for which it is true.
        unique: yields no scene twice.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {SPLITS}")
    rng = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    made = 0
    while n is None or made < n:
        scene = sample_scene(rng, objects, words, repeat)
        if split_of(scene) != split or (accept and not accept(scene)) or (unique and scene.key in seen):
            continue
        if unique:
            seen.add(scene.key)
        made += 1
        yield scene


def describe(item: Object | Word) -> str:
    """A noun phrase with its article: "a red star", "an orange ring", "the word CAT"."""
    if isinstance(item, Word):
        return f"the word {item.text}"
    return f"{'an' if item.colour[0] in 'aeiou' else 'a'} {item.name}"


def join(phrases: list[str]) -> str:
    """Joins phrases as English does: "x", "x and y", "x, y and z"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Puts everything a scene shows into one sentence; in raster order and one phrasing when rng is None."""
    items: list[Object | Word] = [*scene.objects, *scene.words]
    if rng is None:
        items.sort(key=lambda item: (item.row, item.col))
        return join([f"{describe(item)} at the {item.place}" for item in items]) + "."
    rng.shuffle(items)
    form = rng.randrange(4)
    if form == 0:
        return join([f"{describe(item)} at the {item.place}" for item in items]) + "."
    if form == 1:
        return "there is " + join([f"{describe(item)} at the {item.place}" for item in items]) + "."
    if form == 2:
        return join([f"at the {item.place} {describe(item)}" for item in items]) + "."
    return "the image shows " + join([f"{describe(item)} at the {item.place}" for item in items]) + "."


def _polygon(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """Corners of a straight-edged shape about a centre, r being half its extent."""
    if shape == "square":
        return [(cx + x * 0.88 * r, cy + y * 0.88 * r) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    if shape == "diamond":
        return [(cx, cy - r), (cx + 0.72 * r, cy), (cx, cy + r), (cx - 0.72 * r, cy)]
    if shape == "triangle":
        return [(cx, cy - 0.95 * r), (cx + r, cy + 0.8 * r), (cx - r, cy + 0.8 * r)]
    if shape == "cross":
        a = 0.36 * r
        return [(cx + x, cy + y) for x, y in ((-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a),
                                              (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a))]  # fmt: skip
    if shape == "star":
        radii = (1.08 * r, 0.45 * r)
        turns = [(math.pi * k / 5 - math.pi / 2, radii[k % 2]) for k in range(10)]
        return [(cx + d * math.cos(t), cy + d * math.sin(t)) for t, d in turns]
    if shape == "heart":
        turns = [2 * math.pi * k / 40 for k in range(40)]
        return [(cx + r * math.sin(t) ** 3,
                 cy - r / 16 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
                for t in turns]  # fmt: skip
    raise ValueError(f"shape {shape!r} is not one of {SHAPES}")


def jittered_colour(item: Object, rng: random.Random) -> tuple[int, int, int]:
    """An object's colour, a little lighter or darker."""
    red, green, blue = (max(0, min(255, channel + rng.randint(-8, 8))) for channel in COLOURS[item.colour])
    return red, green, blue


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    r: float,
    fill: Ink,
    outline: tuple[Ink, int] | None = None,
) -> None:
    """Draws a shape.

    Args:
        draw: of the image.
        shape: one of `SHAPES`.
        centre: x and y, in pixels.
        r: half of its extent, in pixels.
        fill: colour.
        outline: colour and width in pixels of a line around it, drawn first.
    """
    cx, cy = centre
    box = (cx - r, cy - r, cx + r, cy + r)
    ring = round(0.42 * r)
    if outline is not None:
        colour, width = outline
        wide = (box[0] - width, box[1] - width, box[2] + width, box[3] + width)
        if shape == "circle":
            draw.ellipse(wide, fill=colour)
        elif shape == "ring":
            draw.ellipse(wide, outline=colour, width=ring + 2 * width)
        else:
            corners = _polygon(shape, cx, cy, r)
            draw.line([*corners, *corners[:2]], fill=colour, width=2 * width, joint="curve")
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=ring)
    else:
        draw.polygon(_polygon(shape, cx, cy, r), fill=fill)


def _draw_object(draw: ImageDraw.ImageDraw, item: Object, rng: random.Random, scale: int) -> None:
    """Draws one shape with a little jitter in place, size and colour."""
    r = rng.uniform(11.0, 13.0)
    slack = CELL / 2 - r
    cx = (item.col + 0.5) * CELL + rng.uniform(-slack, slack)
    cy = (item.row + 0.5) * CELL + rng.uniform(-slack, slack)
    draw_shape(draw, item.shape, (cx * scale, cy * scale), r * scale, jittered_colour(item, rng))


def _draw_word(draw: ImageDraw.ImageDraw, item: Word, rng: random.Random, scale: int) -> None:
    """Prints one word, nearly black, with a little jitter in place."""
    step = 3 * DOT_WIDTH + LETTER_GAP
    width, height = len(item.text) * step - LETTER_GAP, 5 * DOT_HEIGHT
    left = item.col * CELL + (CELL - width) // 2 + rng.randint(-2, 2)
    top = item.row * CELL + (CELL - height) // 2 + rng.randint(-3, 3)
    ink = (rng.randint(0, 40),) * 3
    for index, letter in enumerate(item.text):
        for y, dots in enumerate(GLYPHS[letter].split()):
            for x, dot in enumerate(dots):
                if dot == "1":
                    x0, y0 = left + index * step + x * DOT_WIDTH, top + y * DOT_HEIGHT
                    draw.rectangle(
                        (x0 * scale, y0 * scale, (x0 + DOT_WIDTH) * scale - 1, (y0 + DOT_HEIGHT) * scale - 1), ink
                    )


def render(scene: Scene, seed: int) -> Image.Image:
    """Draws a scene as a 96 x 96 RGB image; the seed decides jitter and the light background, nothing that is asked."""
    rng = random.Random(f"{scene.key}/{seed}")
    scale = 4  # drawn large and shrunk, so that edges are smooth
    tint = rng.randint(225, 250)
    ground = tuple(max(0, min(255, tint + rng.randint(-5, 5))) for _ in range(3))
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), ground)
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        _draw_object(draw, item, rng, scale)
    for item in scene.words:
        _draw_word(draw, item, rng, scale)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)
