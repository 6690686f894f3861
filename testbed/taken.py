"""What the steps of a training took: chaos_agent.py's record, read and compared with that of an
undisturbed training. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Taken(NamedTuple):
    """One step of one rank: `at` is when it began, in seconds since 1970, `weights` the digest of
    those that it began with."""

    rank: int
    start: str
    host: str
    step: int
    at: float
    weights: str
    loss: float
    tokens: tuple[str, ...]


def read(folder: Path) -> list[Taken]:
    """The lines of all ranks, each rank's in the order in which they were written."""
    found = []
    for path in sorted(folder.glob("rank-*.log")):
        whole = path.read_text().rpartition("\n")[0]
        rank = int(path.stem.removeprefix("rank-"))
        found += [parse(rank, line) for line in whole.splitlines()]
    return found


def parse(rank: int, line: str) -> Taken:
    start, host, step, at, weights, loss, *tokens = line.split()
    return Taken(rank, start, host, int(step), float(at), weights, float(loss), tuple(tokens))


def of_rank(taken: Sequence[Taken], rank: int = 0) -> list[Taken]:
    return [entry for entry in taken if entry.rank == rank]


@dataclass(frozen=True)
class Reference:
    """What an undisturbed training took. `last` is the digest of its last checkpoint."""

    taken: Mapping[tuple[int, int], Taken]  # by step and rank
    last: str

    @classmethod
    def of(cls, taken: Sequence[Taken], last: str) -> Reference:
        return cls({(entry.step, entry.rank): entry for entry in taken}, last)

    @property
    def steps(self) -> int:
        return 1 + max(step for step, _ in self.taken)


def other_weights(taken: Sequence[Taken], reference: Reference) -> str | None:
    """The first step that began with other weights than in the undisturbed training. A step whose
    result was lost afterwards counts too."""
    for entry in sorted(taken, key=lambda entry: entry.at):
        if entry.weights != reference.taken[entry.step, entry.rank].weights:
            return f"step {entry.step} of rank {entry.rank} began with other weights"
    return None


def other_samples(taken: Sequence[Taken], reference: Reference) -> str | None:
    """The first step that took other samples than in the undisturbed training."""
    for entry in sorted(taken, key=lambda entry: entry.at):
        if entry.tokens != reference.taken[entry.step, entry.rank].tokens:
            return f"step {entry.step} of rank {entry.rank} took other samples"
    return None


def left_out(taken: Sequence[Taken]) -> str | None:
    """A step that no start took though a later one was, or a start that wrote after another one
    had begun; None where all is as it should be."""
    for rank in sorted({entry.rank for entry in taken}):
        reached = -1
        started: list[str] = []
        for entry in of_rank(taken, rank):
            if not started or started[-1] != entry.start:
                if entry.start in started:
                    return f"rank {rank}: start {entry.start} wrote after another one had begun"
                started.append(entry.start)
            elif entry.step != reached + 1:
                return f"rank {rank}: step {entry.step} came after step {reached}"
            if entry.step > reached + 1:
                return f"rank {rank}: start {entry.start} left out step {reached + 1}"
            reached = entry.step
    return None


def once(taken: Sequence[Taken], steps: int, steps_per_epoch: int, samples: int) -> str | None:
    """Whether every epoch took every sample once: what is wrong, or None.

    A step that was taken again after a fault counts once: what it did before was lost with it.
    """
    final = {(entry.step, entry.rank): entry.tokens for entry in _newest(taken)}
    numbers = {step for step, _ in final}
    if numbers != set(range(steps)):
        return f"{len(numbers)} of {steps} steps"
    for first in range(0, steps, steps_per_epoch):
        own = range(first, min(steps, first + steps_per_epoch))
        found = [token for (step, _), tokens in final.items() if step in own for token in tokens]
        due = samples * len(own) // steps_per_epoch
        if len(found) != due or len(set(found)) != due:
            epoch = first // steps_per_epoch
            return f"epoch {epoch}: {len(found)} samples, {len(set(found))} different ones"
    return None


def _newest(taken: Sequence[Taken]) -> list[Taken]:
    """Of each step what the start took that took it last; starts may have other numbers of
    ranks."""
    began: dict[str, float] = {}
    for entry in taken:
        began[entry.start] = min(entry.at, began.get(entry.start, entry.at))
    last: dict[int, str] = {}
    for entry in sorted(taken, key=lambda entry: began[entry.start]):
        last[entry.step] = entry.start
    return [entry for entry in taken if last[entry.step] == entry.start]


def other_losses(
    taken: Sequence[Taken], reference: Reference, tolerance: float
) -> tuple[float, str | None]:
    """The largest relative difference of a step's loss, over all ranks, to that of the undisturbed
    training; and the first step that took other samples, or has a loss further off."""
    expected = _by_step(list(reference.taken.values()))
    worst = 0.0
    for step, (tokens, loss) in sorted(_by_step(_newest(taken)).items()):
        if tokens != expected[step][0]:
            return worst, f"step {step} took other samples"
        away = abs(loss - expected[step][1]) / abs(expected[step][1])
        worst = max(worst, away)
        if away > tolerance:
            return worst, f"the loss of step {step} is {away:.1e} away"
    return worst, None


def _by_step(taken: Sequence[Taken]) -> dict[int, tuple[list[str], float]]:
    """The samples of each step in order, and its mean loss over them."""
    steps: dict[int, list[Taken]] = {}
    for entry in taken:
        steps.setdefault(entry.step, []).append(entry)
    found = {}
    for step, own in steps.items():
        tokens = sorted(token for entry in own for token in entry.tokens)
        loss = sum(entry.loss * len(entry.tokens) for entry in own) / len(tokens)
        found[step] = (tokens, loss)
    return found


def cost(taken: Sequence[Taken]) -> tuple[int, float, int]:
    """Of one rank's lines: steps that were begun and had to be taken again, the longest time from
    the begin of a step to that of the next, and the number of starts."""
    lost, longest, starts = 0, 0.0, 1
    for before, after in zip(taken, taken[1:], strict=False):
        longest = max(longest, after.at - before.at)
        if after.start != before.start:
            starts += 1
            lost += max(0, before.step - after.step + 1)
    return lost, longest, starts
