"""The points of a sweep: what `--multirun` means, by Hydra's own override grammar."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from convoy.config import arguments
from convoy.errors import ConvoyError

LONGEST = 160  # characters of a point's name; file systems allow 255 bytes


@dataclass(frozen=True)
class Point:
    """One training of a sweep. `name` is Hydra's `override_dirname` of what is swept, as a folder
    may be called; `chosen` has, for each word that lists several values, the word of this point."""

    name: str
    chosen: dict[str, str]

    def words(self, words: Sequence[str]) -> list[str]:
        """This point's arguments, of those of the whole sweep."""
        return [self.chosen.get(word, word) for word in words]


def points(words: Sequence[str]) -> list[Point]:
    """Every combination of the choices and ranges in `words`, in Hydra's order: the last word
    varies fastest.

    Raises ConvoyError where nothing is swept, or where a word lists no values that can be counted.
    """
    swept = {word: _values(word) for word in words if _is_sweep(word)}
    if not swept:
        raise ConvoyError(
            "--multirun has nothing to vary: give several values to an override, for example "
            "seed=0,1,2 or 'global_batch=choice(64,128)' (docs/sweep.md)."
        )
    keys = [arguments.key(word) for word in swept]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConvoyError(f"{twice} is varied twice: list all of its values in one override.")
    if any(arguments.key(word) == "run_dir" for word in words):
        raise ConvoyError(
            "run_dir= names one run, and each point of a sweep has its own: --sweep DIR names the "
            "folder of them all."
        )
    chosen = [
        dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())
    ]
    names = [_name(list(point.values())) for point in chosen]
    # Two values may differ only in what no folder may be called.
    return [
        Point(name if names.count(name) == 1 else f"{name}-{number}", point)
        for number, (name, point) in enumerate(zip(names, chosen, strict=True))
    ]


def _is_sweep(word: str) -> bool:
    return not word.startswith("-") and "=" in word and _parsed(word).is_sweep_override()


def _parsed(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConvoyError(f"{word} cannot be read: {str(error).splitlines()[0]}") from error


def _values(word: str) -> list[str]:
    """One override for each value of `word`."""
    override = _parsed(word)
    key = override.get_key_element()
    try:
        values = list(dict.fromkeys(override.sweep_string_iterator()))
    except HydraException:
        raise ConvoyError(
            f"{word} names no list of values: a sweep takes a,b, choice(…) and range(…). An "
            "interval is for a search, and for glob(…) write the names (docs/sweep.md)."
        ) from None
    if not values:
        raise ConvoyError(f"{word} is a range without a value.")
    return [f"{key}={value}" for value in values]


def _name(words: Sequence[str]) -> str:
    """Sorted and joined by commas, as Hydra does; what may not stand in a path is `_`."""
    text = re.sub(r"[^\w.=,+~@-]", "_", ",".join(sorted(words)))
    return text[:LONGEST]
