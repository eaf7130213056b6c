"""Normal forms of short answers, and their accuracy against several human answers.

Two normalisers are in use: VQAEval's (VQAv2) and M4C's (TextVQA, and LLaVA's files for EvalAI), which splits words
first. Both are reproduced with their quirks, because the published numbers contain them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# Meant to spare decimal points, but `(?!<=\d)` is a typo for `(?<!\d)` that is always true: "2." loses its point too.
FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
# A flag was passed where the number of replacements goes: at most this many full stops are removed.
FULL_STOPS_REMOVED = int(re.UNICODE)
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

NUMBERS = dict(
    zip(
        ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        ["0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
        strict=True,
    )
)
ARTICLES = frozenset({"a", "an", "the"})

CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def spell_contractions(contracted: str) -> dict[str, str]:
    """Maps every spelling that lacks one apostrophe to the contraction ("dont" -> "don't"), as VQAEval's list does."""
    table = {
        word[:at] + word[at + 1 :]: word
        for word in contracted.split()
        for at, letter in enumerate(word)
        if letter == "'"
    }
    return table | {"somebody'd": "somebodyd"}  # VQAEval has this one the wrong way round


CONTRACTIONS = spell_contractions(CONTRACTED)


def strip_punctuation(text: str) -> str:
    """Delete a mark that stands beside a space (or any, when digits are grouped by commas), else make it a space."""
    grouped = DIGIT_COMMA_DIGIT.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or grouped else " ")
    return FULL_STOP.sub("", stripped, count=FULL_STOPS_REMOVED)


def simplify_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes, single spaces."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def flatten(text: str) -> str:
    """One line without surrounding space."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise_vqa(text: str) -> str:
    """VQAEval's normal form."""
    return simplify_words(strip_punctuation(flatten(text)))


@lru_cache(maxsize=1 << 16)
def normalise_m4c(text: str) -> str:
    """M4C's normal form (EvalAIAnswerProcessor): VQAEval's after splitting off "'s" and deleting "," and "?"."""
    split = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise_vqa(split.strip())


def agree_with_others(prediction: str, human: Sequence[str]) -> float:
    """The VQA accuracy of one answer: min(1, matches / 3) against the humans, averaged over leaving each human out.

    Humans are left out by position, so that annotations without `answer_id` score as those that have it.
    """
    matches = sum(answer == prediction for answer in human)
    credit = sum(min(1.0, (matches - (answer == prediction)) / 3) for answer in human)
    return credit / len(human)


def score_normalised(prediction: str, human: Sequence[str], normalise: Callable[[str], str]) -> float:
    """The VQA accuracy after bringing both sides to their normal form."""
    return agree_with_others(normalise(prediction), [normalise(answer) for answer in human])


def best_constant(humans: Sequence[Sequence[str]]) -> tuple[str, float]:
    """Which of the 50 most frequent answers scores best when given to every question, and what it scores in percent."""
    frequent = dict(Counter(answer for human in humans for answer in human).most_common(50))
    scored: dict[str, float] = dict.fromkeys(frequent, 0.0)
    for human in humans:
        for answer in frequent.keys() & set(human):
            scored[answer] += agree_with_others(answer, human)
    best = max(scored, key=lambda answer: scored[answer])
    return best, 100 * scored[best] / len(humans)
