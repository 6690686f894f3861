"""Sets of values that a setting may have, each with the words that a message uses for it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A set of values: `words` describes it, `holds` decides."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(
            f"{self.words} or {other.words}", lambda value: self.holds(value) or other.holds(value)
        )


def whole(least: int, most: int | None = None) -> Kind:
    words = (
        f"a whole number of at least {least}"
        if most is None
        else f"a whole number from {least} to {most}"
    )
    return Kind(
        words, lambda value: _is_whole(value) and least <= value and (most is None or value <= most)
    )


def number(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """A finite number within the bounds; `above` and `below` are not part of it."""
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (
            ("of at least", least),
            ("above", above),
            ("of at most", most),
            ("below", below),
        )
        if bound is not None
    ]
    return Kind(
        " ".join(["a number", " and ".join(bounds)]).strip(),
        lambda value: (
            _is_number(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        ),
    )


def fraction() -> Kind:
    """As Lightning's limits: a share is written with a point, a count without."""
    return Kind(
        "a share from 0.0 to 1.0",
        lambda value: isinstance(value, float) and 0 <= value <= 1,
    )


def one_of(*values: Any) -> Kind:
    """Exactly one of `values`; true is not 1 here."""
    words = ", ".join("null" if value is None else str(value) for value in values)
    return Kind(
        words,
        lambda value: any(type(value) is type(other) and value == other for other in values),
    )


def matching(pattern: str, words: str) -> Kind:
    return Kind(words, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    finite = isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
    return finite and not isinstance(value, bool)


SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
NULL = Kind("null", lambda value: value is None)
TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
TEXTS = Kind(
    "a list of names",
    lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value),
)
ANY = Kind("anything", lambda value: True)
