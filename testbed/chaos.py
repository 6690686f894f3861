#!/usr/bin/env python3
"""Faults at random moments against real trainings on the testbed; standard library only.

`testbed/chaos.py [--rounds 20] [--seed 1] [FAULT…]` needs an image, and starts clusters of its own
unless `--name` names one that is up. Each training suffers up to 16 faults. It has to end by itself
with the weights of an undisturbed one, bit by bit, to have taken every sample of every epoch once,
and to leave no process. A table says how many steps were lost and how long until the next one.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import marathon
import results
from faults import FAULTS, FEWER_NODES
from results import Result
from taken import Reference
from watched import CLUSTER, ROOT, Failed, Testbed

NAME = "convoy-chaos"
SHORT = ("time limit", "preempted", "node killed", "disk full", "newest checkpoint cut")
ALL = (*FAULTS, FEWER_NODES)
NODES = 6  # a training takes two, and avoids those that it lost
ASKED_OFTEN = "SlurmdTimeout=60"  # SLURM looks three times as often whether a node is there
UNPACKED = {"CONVOY_UNPACK": f"{ROOT}/build/unpacked"}  # all nodes of a testbed see that folder
AT_MOST = len(FAULTS)  # faults of one training


@dataclass
class Chaos:
    """Rounds of faults, and their results as they come. Every other training runs from an image
    that is unpacked on the nodes; `keep` is the file for the results, `about` what it says of each.
    """

    seed: int
    rounds: list[list[str]]  # faults of one training each
    keep: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    problem: str | None = None

    def __post_init__(self) -> None:
        self._steps = marathon.STEPS_PER_FAULT * max(len(faults) for faults in self.rounds)
        self._lock = threading.Lock()
        self._references: dict[Sequence[str], Reference] = {}
        self._trainings: Counter[bool] = Counter()  # of all nodes to the end, and of fewer
        self._over = False

    def work(self, testbed: Testbed, until: float) -> None:
        """Take rounds until there are none left, or the time is over."""
        try:
            testbed.make_cache()
            while time.monotonic() < until and (faults := self._next()):
                while faults:
                    faults = self._train(testbed, faults)
        except Failed as error:
            self.problem = f"an undisturbed training, or the begin of one: {error}"

    def _next(self) -> list[str] | None:
        with self._lock:
            return self.rounds.pop(0) if self.rounds and self.problem is None else None

    def _train(self, testbed: Testbed, faults: list[str]) -> list[str]:
        """The faults that are left."""
        fewer = faults == [FEWER_NODES]
        with self._lock:
            self._trainings[fewer] += 1
            seed = f"{self.seed}-{self._trainings[fewer]}"
            unpacked = self._trainings[fewer] % 2 == 0
        if unpacked:
            testbed = replace(testbed, environment=testbed.environment | UNPACKED)

        def report(result: Result) -> None:
            self._keep(result, unpacked)

        if fewer:
            reference = self._reference(testbed, marathon.TOLERANT_STEPS, marathon.TOLERANT)
            marathon.on_fewer_nodes(testbed, reference, seed, report)
            return []
        return marathon.run(testbed, faults, self._reference(testbed, self._steps), seed, report)

    def _reference(self, testbed: Testbed, steps: int, overrides: Sequence[str] = ()) -> Reference:
        with self._lock:  # nobody can continue without it
            if overrides not in self._references:
                self._references[overrides] = marathon.undisturbed(testbed, steps, overrides)
            return self._references[overrides]

    def stop(self) -> None:
        """What comes from now on says nothing: the clusters are going down."""
        self._over = True

    def _keep(self, result: Result, unpacked: bool) -> None:
        with self._lock:
            if self._over:
                return
            self.results.append(result)
            print(f"{datetime.now():%H:%M:%S} {result}", flush=True)
            if self.keep is not None:
                results.add(self.keep, result, self.about | {"unpacked": unpacked})


def dealt(faults: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """The faults of each training: each round in an order of its own."""
    chance = random.Random(seed)
    found: list[list[str]] = []
    waiting: list[str] = []
    for _ in range(rounds):
        exact = [fault for fault in faults if fault != FEWER_NODES]
        waiting += chance.sample(exact, len(exact))
        while len(waiting) >= AT_MOST:
            found.append(waiting[:AT_MOST])
            waiting = waiting[AT_MOST:]
        if FEWER_NODES in faults:
            found.append([FEWER_NODES])
    return [*found, waiting] if waiting else found


@contextmanager
def clusters(name: str | None, count: int) -> Iterator[list[str]]:
    """Names of clusters that are up meanwhile: the given one, or `count` of its own."""
    if name is not None:
        yield [name]
        return
    names = [f"{NAME}-{number}" for number in range(1, count + 1)]
    with ExitStack() as stack:
        for own in names:
            manage = [sys.executable, str(CLUSTER), f"--name={own}"]
            subprocess.run([*manage, "down"], check=True)
            stack.callback(subprocess.run, [*manage, "down"], check=True)
            up = [
                *manage,
                "up",
                f"--nodes={NODES}",
                "--no-accounting",
                f"--slurm-conf={ASKED_OFTEN}",
            ]
            subprocess.run(up, check=True)
        yield names


def main() -> int:
    parser = argparse.ArgumentParser(prog="testbed/chaos.py", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of: {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=20, help="of each fault (%(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no training after so many")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--clusters", type=int, default=2, help="at the same time (%(default)s)")
    parser.add_argument("--name", help="of a cluster that is up")
    parser.add_argument("--image", type=Path, default=ROOT / "build" / "convoy.sif")
    parser.add_argument("--bind", default="/scratch,/small", help="what the image sees")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="of every job"
    )
    parser.add_argument("--json", type=Path, help="add each result to this file as it comes")
    args = parser.parse_args()
    unknown = [fault for fault in args.faults if fault not in ALL]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; there are: {', '.join(ALL)}")
    print(f"seed {args.seed}", flush=True)
    environment = dict(pair.split("=", 1) for pair in args.env)
    rounds = dealt(args.faults or ALL, args.rounds, args.seed)
    about = results.circumstances(args.seed, environment)
    chaos = Chaos(args.seed, rounds, args.json, about)
    until = time.monotonic() + (float("inf") if args.minutes is None else args.minutes * 60)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with clusters(args.name, min(args.clusters, len(rounds))) as names:
        try:
            workers = []
            for name in names:
                testbed = Testbed(name, args.image.absolute(), args.bind, environment)
                work = threading.Thread(target=chaos.work, args=(testbed, until), daemon=True)
                work.start()
                workers.append(work)
            for work in workers:
                work.join()
        finally:
            chaos.stop()
    print(results.table(chaos.results))
    if args.json and args.json.exists():
        print(f"all of {args.json}:\n{results.table(results.load(args.json))}")
    if chaos.problem:
        print(f"chaos: {chaos.problem}", file=sys.stderr)
    bad = [result.fault for result in chaos.results if not result.is_good]
    if bad:
        print(f"chaos: not home: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad or chaos.problem else 0


if __name__ == "__main__":
    sys.exit(main())
