"""What a method can and cannot save of one question's time, in one sentence that follows from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HARDLY = 0.9
"""A prefill that still takes so much of its time hardly fell."""
FEWER = 0.75
"""Visual tokens, averaged over the layers, that should have made it fall."""
FAR = 4.0
"""How many times its least time a prefill takes that waits for something else than arithmetic and memory."""


@dataclass(frozen=True)
class Measured:
    """One question's times with a method, or without one.

    Attributes:
        seconds: medians by part: pixels, tower, reducer, projector, prefill, decode (each token after the first), total.
        new_tokens: of the answer.
        prompt: tokens of the prompt, every placeholder counted.
        full: visual tokens without a method.
        equivalent: visual tokens averaged over the decoder's layers.
        floors: least seconds of tower, projector, prefill and decode on this machine; {} where they are not known.
    """

    seconds: Mapping[str, float]
    new_tokens: int
    prompt: int
    full: int
    equivalent: float
    floors: Mapping[str, float]

    @property
    def parts(self) -> dict[str, float]:
        """Seconds before a method acts, of what it can shorten, and of the tokens after the first."""
        seconds = self.seconds
        return {
            "before": seconds["pixels"] + seconds["tower"],
            "prefill": seconds["reducer"] + seconds["projector"] + seconds["prefill"],
            "decode": seconds["decode"] * (self.new_tokens - 1),
        }


def verdict(name: str, none: Measured, method: Measured, saved: tuple[float, float, float]) -> str:
    """The sentence.

    Args:
        name: the method's.
        none: without a method.
        method: with it.
        saved: quartiles, the median in the middle, of the seconds saved in each round.
    """
    if method.equivalent >= none.equivalent:
        return f"{name} dropped no token of this image, so there is nothing that it could save."
    parts, total = none.parts, none.seconds["total"]
    share = {part: seconds / total for part, seconds in parts.items()}
    largest = max(share, key=lambda part: share[part])
    text = {
        "before": f"Tower-bound: {_percent(share['before'])} of the time without a method goes to the images' pixels and "
        "the vision tower, which run before it acts",
        "decode": f"Decode-bound: {_percent(share['decode'])} of the time without a method goes to the "
        f"{none.new_tokens - 1} tokens after the first, each of which reads all weights however few visual tokens there are",
        "prefill": f"Prefill-bound: {_percent(share['prefill'])} of the time without a method is prefill and projector, "
        f"and {_percent(none.full / none.prompt)} of the prompt is visual",
    }[largest]
    if largest == "prefill" and _waits(none, method):
        ratio = none.seconds["prefill"] / none.floors["prefill"]
        text = (
            f"Launch-bound: the prefill takes {ratio:.0f} times the least that arithmetic and memory allow, and hardly "
            f"fell with {_percent(method.equivalent / none.equivalent)} of the visual tokens"
        )
        return f"{text}; it waits for its kernels to be started, and {name} {_told(saved, total)}."
    most = none.full / none.prompt * (none.seconds["prefill"] + none.seconds["projector"]) / total
    cuts = f"visual tokens in prefill and projector, which {name} cuts, take about {_percent(most)}"
    return f"{text}; {cuts}, and it {_told(saved, total, method)}."


def _waits(none: Measured, method: Measured) -> bool:
    """Whether the prefill did not follow the number of its tokens, and is far from what the machine could do."""
    floor = none.floors.get("prefill", 0.0)
    fell = method.seconds["prefill"] <= HARDLY * none.seconds["prefill"]
    fewer = method.equivalent <= FEWER * none.equivalent
    return fewer and not fell and floor > 0 and none.seconds["prefill"] > FAR * floor


def _told(saved: tuple[float, float, float], total: float, method: Measured | None = None) -> str:
    low, middle, high = (value / total for value in saved)
    if low > 0:
        return f"saved {_percent(middle)} here"
    if high < 0:
        own = "" if method is None else f", its own rule taking {1e3 * method.seconds['reducer']:.3g} ms"
        return f"made it {_percent(-middle)} slower here{own}"
    return f"saved nothing here beyond the spread of the rounds ({100 * middle:+.1f}%)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
