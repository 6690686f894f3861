#!/usr/bin/env python3
"""Faults at random moments against real trainings on the testbed; standard library only.

`testbed/chaos.py [--rounds 20] [--seed 1] [FAULT…]` needs an image, and starts a cluster of its own
unless `--name` names one that is up. Each training has to end by itself with the weights of an
undisturbed one, bit by bit, to have taken every sample of every epoch once, and to leave no
process. A table says how many steps were lost and how long until the next one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from faults import FAULTS, FOLDERS, SLOW
from watched import CACHE, CLUSTER, FORK, ROOT, STEPS, Failed, Testbed, Training

NAME = "convoy-chaos"
SHORT = ("rank SIGKILL", "time limit", "preempted", "disk full", "newest checkpoint cut")
NODES = 3  # the trainings take two: one is left to move to


@dataclass(frozen=True)
class Result:
    """What one fault cost. `equal`: the weights are those of the undisturbed run; `consumed`: what
    is wrong with the samples that it took; `problem`: why it did not come home."""

    fault: str
    at_step: int
    lost_steps: int = 0
    seconds: float = 0.0
    starts: int = 0
    equal: bool = False
    consumed: str | None = None
    orphans: int = 0
    problem: str | None = None

    @property
    def is_good(self) -> bool:
        return self.equal and not (self.orphans or self.consumed or self.problem)


def suffer(testbed: Testbed, fault: str, expected: str, chance: random.Random) -> Result:
    """One training with one fault."""
    step = chance.randint(STEPS // 6, STEPS // 2)
    try:
        training = Training.submitted(
            testbed, FOLDERS.get(fault, "/scratch/chaos"), SLOW.get(fault, 0.1)
        )
        training.wait_for_step(step)
        FAULTS[fault](training, chance)
        training.wait_for_the_end()
        lost, seconds, starts = cost(training.steps())
        equal, consumed = training.digest() == expected, training.consumed()
    except Failed as error:
        testbed.run("scancel", "--user=researcher")
        return Result(fault, step, problem=str(error))
    return Result(fault, step, lost, seconds, starts, equal, consumed, testbed.orphans())


def cost(steps: list[tuple[datetime, int]]) -> tuple[int, float, int]:
    """Steps that were taken twice, seconds between the last step before and the first after, and
    how many starts took steps."""
    lost, seconds, starts = 0, 0.0, 1
    for (before, reached), (after, first) in zip(steps, steps[1:], strict=False):
        pause = (after - before).total_seconds()
        if first <= reached or (pause > 5 and pause > seconds):
            lost += max(0, reached - first + 1)
            seconds, starts = seconds + pause, starts + 1
    return lost, seconds, starts


def reference(testbed: Testbed) -> str:
    """The weights of an undisturbed training."""
    testbed.in_image("python", f"{FORK}/chaos_cache.py", CACHE)
    training = Training.submitted(testbed)
    training.wait_for_the_end()
    if problem := training.consumed():
        raise Failed(f"it did not take every sample once: {problem}")
    return training.digest()


def table(results: list[Result]) -> str:
    head = ("fault", "runs", "home", "steps lost", "s to next step", "equal", "orphans")
    rows = []
    for fault in dict.fromkeys(result.fault for result in results):
        own = [result for result in results if result.fault == fault]
        home = [result for result in own if not result.problem]
        rows.append(
            (
                fault,
                str(len(own)),
                str(sum(result.is_good for result in own)),
                _span([result.lost_steps for result in home]),
                _span([round(result.seconds) for result in home]),
                str(sum(result.equal for result in home)),
                str(sum(result.orphans for result in home)),
            )
        )
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def _span(numbers: list[int]) -> str:
    if not numbers:
        return "-"
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least}-{most}"


@contextmanager
def cluster(name: str | None) -> Iterator[str]:
    """The name of a cluster that is up meanwhile: the given one, or one of its own."""
    if name is not None:
        yield name
        return
    manage = [sys.executable, str(CLUSTER), f"--name={NAME}"]
    subprocess.run([*manage, "down"], check=True)
    try:
        subprocess.run([*manage, "up", f"--nodes={NODES}", "--no-accounting"], check=True)
        yield NAME
    finally:
        subprocess.run([*manage, "down"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="testbed/chaos.py", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of: {', '.join(FAULTS)}")
    parser.add_argument("--rounds", type=int, default=20, help="of each fault (%(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no training after so many")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--name", help="of a cluster that is up")
    parser.add_argument("--image", type=Path, default=ROOT / "build" / "convoy.sif")
    parser.add_argument("--bind", default="/scratch,/small", help="what the image sees")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="of every job"
    )
    parser.add_argument("--json", type=Path, help="add the results to this file")
    args = parser.parse_args()
    unknown = [fault for fault in args.faults if fault not in FAULTS]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; there are: {', '.join(FAULTS)}")
    print(f"seed {args.seed}", flush=True)
    chance = random.Random(args.seed)
    environment = dict(pair.split("=", 1) for pair in args.env)
    with cluster(args.name) as name:
        testbed = Testbed(name, args.image.absolute(), args.bind, environment)
        try:
            expected = reference(testbed)
        except Failed as error:
            print(f"chaos: the undisturbed training: {error}", file=sys.stderr)
            return 1
        results = rounds(testbed, expected, chance, args)
    print(table(results))
    if args.json:
        record(args.json, results, args.seed, environment)
    bad = [result.fault for result in results if not result.is_good]
    if bad:
        print(f"chaos: not home: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def rounds(
    testbed: Testbed, expected: str, chance: random.Random, args: argparse.Namespace
) -> list[Result]:
    """One result per fault and round, each printed as it comes."""
    began = time.monotonic()
    results: list[Result] = []
    for _ in range(args.rounds):
        for fault in args.faults or FAULTS:
            if args.minutes is not None and time.monotonic() - began > args.minutes * 60:
                return results
            results.append(suffer(testbed, fault, expected, chance))
            print(f"{datetime.now():%H:%M:%S} {results[-1]}", flush=True)
    return results


def record(path: Path, results: list[Result], seed: int, environment: dict[str, str]) -> None:
    """Add the results to those of earlier calls."""
    entries = json.loads(path.read_text()) if path.exists() else []
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    entries += [
        {"date": when, "seed": seed, "environment": environment, **asdict(result)}
        for result in results
    ]
    path.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
