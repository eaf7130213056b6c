"""Messages about names: what is not known, what may have been meant, what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST_LIST = 60
_LIKENESS = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most resembles, or None.

    Case, hyphens and the plus sign of "PruMerge+" make no difference.
    """
    plain = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name[:100]), plain, n=1, cutoff=_LIKENESS)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.casefold().replace("+", "_plus").replace("-", "_").replace(" ", "_").strip("_")


def not_known(kind: str, given: object, known: Iterable[str]) -> str:
    """One line for a name that is not known: method 'grif' is not known; did you mean 'grid'? There are: dart, grid

    Args:
        kind: what is named, in the singular: "method", "setting of grid".
        given: the name, or several of them.
        known: what there is, in the order to list it.
    """
    several = isinstance(given, (list, tuple, set, frozenset))
    names = sorted(map(str, given)) if isinstance(given, (list, tuple, set, frozenset)) else [str(given)]
    known = list(known)
    meant = dict.fromkeys(one for name in names if (one := nearest(name, known)) is not None)
    told = f"{kind} {', '.join(_shown(name) for name in names)} {'are' if several and len(names) > 1 else 'is'} not known; "
    if meant:
        told += f"did you mean {' and '.join(map(repr, meant))}? There are: "
    else:
        told += "there are: "
    listed = ", ".join(known[:_LONGEST_LIST]) or "none"
    more = len(known) - _LONGEST_LIST
    return told + listed + (f" and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    return shown(name, 80)


def shown(value: object, width: int = 200) -> str:
    """A value from outside as messages show it: quoted as Python does, on one line, cut where it is long."""
    text = repr(value[: width + 1] if isinstance(value, str) else value)
    return text if len(text) <= width else f"{text[: width - 3]}..."
