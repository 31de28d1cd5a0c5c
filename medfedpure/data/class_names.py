"""Which classes are a finding: the names tell, or whoever asks says it. Sensitivity is a finding's recall.

A name says "nothing found" by a word: `no_lesion`, `nonCOVID`, `Healthy`, `without-tumor`, `benign2`. Words end where
the case changes and at everything that is no letter, so `nodule` and `abnormality` say nothing of the kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from medfedpure.core.errors import DataError

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]")
_DENIALS = frozenset({"no", "non", "not", "without"})
_STATES = frozenset(
    [
        "absent",
        "absence",
        "negative",
        "neg",
        "normal",
        "healthy",
        "benign",
        "none",
        "control",
        "nofinding",
        "notumor",
        "uninfected",
        "unaffected",
    ]
)


def none_among(names: Sequence[str]) -> str | None:
    """The one name that says "nothing found"; None where none does, several do, or one cannot be told (not_normal)."""
    found = [name for name in names if _says_none(name, names)]
    clear = all(_says_none(name, names) is not None for name in names)
    return found[0] if clear and len(found) == 1 else None


def findings_among(names: Sequence[str], positive: str | Sequence[str] | None, where: object) -> tuple[int, ...] | None:
    """Places of the classes that are a finding: those given, else all but the one whose name says "nothing found".

    Args:
        names: of all classes.
        positive: of those that are a finding, where somebody said it.
        where: the classes are, for the error.

    Returns:
        None where nothing is given and the names do not tell.

    Raises:
        DataError: a class that is not there, or every one.
    """
    if positive is not None:
        given = (positive,) if isinstance(positive, str) else tuple(positive)
        if not set(given) <= set(names) or not 0 < len(set(given)) < len(names):
            wanted = f"positive must be one or more of {', '.join(names)}, not all"
            raise DataError(f"{where}: {wanted}; got {', '.join(given) or 'none'}")
        return tuple(place for place, name in enumerate(names) if name in given)
    none = none_among(names)
    return None if none is None else tuple(place for place, name in enumerate(names) if name != none)


def _says_none(name: str, names: Sequence[str]) -> bool | None:
    """Whether a name says "nothing found"; None for a denial of a state, which may mean either."""
    words = [word.casefold() for word in _WORD.findall(name)]
    denied = not _DENIALS.isdisjoint(words)
    # Among several classes benign is a finding beside the malignant one, not its absence.
    states = _STATES - {"benign"} if len(names) > 2 else _STATES
    state = any(word in states or word.removesuffix("s") in states for word in words)
    if denied and state:
        return None
    return denied or state or _denies_another(name, names)


def _denies_another(name: str, names: Sequence[str]) -> bool:
    """Whether it is another name behind a denial in one word: `nondemented` beside `demented`."""
    plain, *others = ("".join(filter(str.isalnum, one)).casefold() for one in (name, *names))
    return any(plain == denial + other for denial in _DENIALS for other in others if other)
