"""The row of a plan to take, for an aim, and the reason in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from convoy.host.plan import Row, Span
from convoy.run.timeline import span

AIMS = ("soonest", "cheapest", "balanced")
CLOSE = 0.05  # rows that finish within this share of the soonest are not told apart
BALANCED = 0.25


@dataclass(frozen=True)
class Plan:
    """All rows, the soonest first, and the recommended one with its reason."""

    rows: tuple[Row, ...]
    best: Row | None
    reason: str
    aim: str = "soonest"
    notes: tuple[str, ...] = field(default=())


def choose(rows: Sequence[Row], aim: str, notes: Sequence[str] = ()) -> Plan:
    """The rows in order, and the one to take for `aim`, with the reason in a sentence."""
    possible = sorted((row for row in rows if row.possible), key=_finish)
    ordered = (*possible, *(row for row in rows if not row.possible))
    if not possible:
        return Plan(
            ordered, None, "No shape can run this training; the table says why.", aim, tuple(notes)
        )
    soonest = possible[0]
    if aim == "cheapest":
        best = min(possible, key=lambda row: (round(_cost(row), 1), _finish(row)))
        reason = f"it takes the fewest GPU-hours, {_cost(best):.0f}"
    elif aim == "balanced":
        near = [row for row in possible if _finish(row) <= (1 + BALANCED) * _finish(soonest)]
        best = min(near, key=_cost)
        reason = (
            f"of the {len(near)} that finish within {BALANCED:.0%} of the soonest it takes the "
            "fewest "
            f"GPU-hours, {_cost(best):.0f}"
        )
    else:
        near = [row for row in possible if _finish(row) <= (1 + CLOSE) * _finish(soonest)]
        best = min(near, key=_cost)
        reason = "it finishes soonest"
        if best is not soonest:
            reason = f"it finishes as soon as {soonest.offer} for fewer GPU-hours"
    assert best.total is not None
    sentence = f"Take {best.offer}: {reason}, {_about(best.total)}."
    return Plan(ordered, best, sentence, aim, tuple(notes))


def _finish(row: Row) -> float:
    assert row.total is not None
    return row.total.expected


def _cost(row: Row) -> float:
    assert row.gpu_hours is not None
    return row.gpu_hours


def _about(total: Span) -> str:
    return f"in about {span(total.expected)} ({span(total.low)} to {span(total.high)})"
