"""Two scorings of the same scenes, compared scene by scene."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convoy.data.prepare.plan import changes
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.plan import Plan, read_plan
from convoy.scoring.summary import SCORE, Table, interval

OF_THE_AGENT = ("agent", "checkpoint")  # what may differ in the identities of two scorings


@dataclass(frozen=True)
class Difference:
    """One column over the scenes that both have: means of each, and of second minus first with its
    95 % confidence interval; `better` and `worse` count scenes of the second."""

    column: str
    first: float
    second: float
    mean: float
    low: float | None
    high: float | None
    better: int
    worse: int


@dataclass(frozen=True)
class Comparison:
    """`left_out` scenes failed in one of the two, or are in one only."""

    split: str
    scenes: int
    left_out: int
    differences: tuple[Difference, ...]


def compare(first: ScoreDirectory, second: ScoreDirectory) -> Comparison:
    """Paired differences, second minus first.

    Both scored the same scenes, so what makes a scene hard cancels in its difference. The interval
    is that of the mean difference when whole logs are drawn again (paired cluster bootstrap), as in
    a scoring's own summary. Raises ConvoyError where the two are not of the same scenes and
    metrics.
    """
    plans = read_plan(first), read_plan(second)
    _require_comparable(*plans)
    tables = _table(first), _table(second)
    shared = sorted(set(tables[0].tokens) & set(tables[1].tokens))
    if not shared:
        raise ConvoyError(f"{first.root} and {second.root} have no scene in common.")
    logs = [plans[0].log_of[token] for token in shared]
    rows = [_rows(table, shared) for table in tables]
    columns = [name for name in tables[0].columns if name in tables[1].columns]
    found = []
    for name in columns:
        a = tables[0].column(name)[rows[0]]
        b = tables[1].column(name)[rows[1]]
        found.append(_difference(name, a, b, logs, *(table.means[name] for table in tables)))
    whole = len(set(tables[0].tokens) | set(tables[1].tokens))
    paired = np.isfinite(tables[0].values[rows[0]]).any(axis=1) & np.isfinite(
        tables[1].values[rows[1]]
    ).any(axis=1)
    return Comparison(
        str(plans[0].identity["split"]),
        int(paired.sum()),
        whole - int(paired.sum()),
        tuple(found),
    )


def scoring_of(path: Path, split: str) -> ScoreDirectory:
    """The finished scoring that `path` is, or that the run `path` has of `split`: of its best
    checkpoint where there are several. Raises ConvoyError where that is not one."""
    own = ScoreDirectory(path)
    if own.plan.is_file():
        return own
    run = RunDirectory(path)
    found = sorted(table.parent for table in (run.scores / split).glob("*/scores.csv"))
    best = run.best_checkpoint.resolve().stem
    chosen = [root for root in found if root.name == best] if len(found) > 1 else found
    if len(chosen) != 1:
        have = ", ".join(str(root) for root in found) or "none"
        raise ConvoyError(
            f"{path} is not a scoring, and as a run it has no single one of {split} (--split): "
            f"{have}. Name one of these, or make one: convoy score {path} --split {split}."
        )
    return ScoreDirectory(chosen[0])


def _require_comparable(first: Plan, second: Plan) -> None:
    one, other = (
        {key: value for key, value in plan.identity.items() if key not in OF_THE_AGENT}
        for plan in (first, second)
    )
    changed = changes(one, other)
    if changed:
        raise ConvoyError(
            f"These scores cannot be compared: {'; '.join(changed[:4])}. Score both with the same "
            "split, settings and NAVSIM."
        )


def _table(directory: ScoreDirectory) -> Table:
    try:
        return Table.parse(directory.table.read_bytes())
    except OSError as error:
        raise ConvoyError(
            f"{directory.root} is not finished ({directory.table.name}: {error.strerror}): the "
            "same convoy score command finishes it."
        ) from error


def _rows(table: Table, tokens: Sequence[str]) -> list[int]:
    place = {token: row for row, token in enumerate(table.tokens)}
    return [place[token] for token in tokens]


def _difference(
    name: str, a: np.ndarray, b: np.ndarray, logs: Sequence[str], mean_a: float, mean_b: float
) -> Difference:
    """Of the values (n,) of the same scenes; NaN on either side leaves a scene out."""
    difference = b - a
    paired = np.isfinite(difference)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    if name == SCORE and not paired.any():
        # Of two stages: no mean over scenes, so there is nothing to pair.
        return Difference(name, mean_a, mean_b, mean_b - mean_a, None, None, better, worse)
    if not paired.any():
        return Difference(name, math.nan, math.nan, math.nan, None, None, 0, 0)
    low, high = interval(difference, logs)
    first, second = float(a[paired].mean()), float(b[paired].mean())
    return Difference(
        name, first, second, float(difference[paired].mean()), low, high, better, worse
    )
