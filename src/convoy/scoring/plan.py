"""What is to be scored, written down once in `<scoring>/scoring.json`: the scenes of a split in
units of at most sixteen, so that a kill loses less than a minute of each process's work."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convoy.data import pool
from convoy.data.entries import require_name
from convoy.data.prepare.plan import changes, create_once
from convoy.data.shard import shard_name
from convoy.data.shards import DAMAGED
from convoy.errors import ConvoyError
from convoy.navsim.importing import one_thread
from convoy.navsim.split_scenes import SceneSource, synthetic_scenes, tokens_of_log
from convoy.run.score_layout import ScoreDirectory

SCENES_PER_UNIT = 16
LOGS_PER_LISTER = 8  # that a process must have to list for it to be worth starting
VERSION = 1


@dataclass(frozen=True)
class Unit:
    """Scenes of one log that are scored together. `files` are those of a second stage's scenes, in
    the order of `tokens`; empty in the first stage."""

    log: str
    part: int
    tokens: tuple[str, ...]
    files: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        return len(self.tokens)

    @property
    def name(self) -> str:
        return shard_name(self.log, self.part) + ("-two" if self.files else "")


@dataclass(frozen=True)
class Plan:
    """`identity` is what makes two scorings the same."""

    identity: Mapping[str, Any]
    units: tuple[Unit, ...]

    @property
    def tokens(self) -> int:
        return sum(unit.weight for unit in self.units)

    @property
    def log_of(self) -> dict[str, str]:
        return {token: unit.log for unit in self.units for token in unit.tokens}


def open_plan(
    directory: ScoreDirectory, identity: Mapping[str, Any], begin: Callable[[], Sequence[Unit]]
) -> Plan:
    """The plan of a scoring; where there is none yet, `begin` lists its units.

    Raises ConvoyError, naming the differences, when the directory belongs to another scoring.
    """
    if not directory.plan.exists():
        content = {
            "version": VERSION,
            "identity": identity,
            "units": [asdict(unit) for unit in begin()],
        }
        create_once(directory.plan, content)
    plan = read_plan(directory)
    changed = changes(plan.identity, identity)
    if changed:
        raise ConvoyError(
            f"{directory.root} belongs to another scoring: {'; '.join(changed[:4])}. Give another "
            "--out, or the same arguments to continue that one."
        )
    return plan


def list_units(source: SceneSource, split: str, workers: int | None) -> list[Unit]:
    """Every scene of the split, by log and in time; `workers` processes read the logs.

    Raises ConvoyError where there is none.
    """
    source.require(split)
    logs = source.log_names()
    for log in logs:
        _require_name(log)
    listers = max(1, min(workers or len(os.sched_getaffinity(0)), len(logs) // LOGS_PER_LISTER))
    print(f"listing the scenes of {len(logs)} logs", file=sys.stderr, flush=True)
    listed = dict(pool.run(tokens_of_log, source, logs, listers, one_thread))
    units = [unit for log in logs for unit in _parts(log, listed[log])]
    if source.two_stage:
        units += _second_stage(source)
    if not units:
        tokens = source.scene_filter.get("tokens")
        named = "" if tokens is None else f" with one of the {len(tokens)} tokens that it names"
        raise ConvoyError(
            f"None of the {len(logs)} logs in navsim_log_path={source.logs} holds a scene of "
            f"{split}{named}: there is nothing to score."
        )
    return units


def _second_stage(source: SceneSource) -> list[Unit]:
    by_log: dict[str, dict[str, str]] = {}
    for token, (path, log) in sorted(synthetic_scenes(source).items()):
        _require_name(log)
        by_log.setdefault(log, {})[token] = str(path)
    return [
        Unit(unit.log, unit.part, unit.tokens, tuple(files[token] for token in unit.tokens))
        for log, files in sorted(by_log.items())
        for unit in _parts(log, list(files))
    ]


def _parts(log: str, tokens: Sequence[str]) -> list[Unit]:
    """The scenes of a log in nearly equal units."""
    count = -(-len(tokens) // SCENES_PER_UNIT)
    bounds = [len(tokens) * part // count for part in range(count + 1)] if count else []
    return [
        Unit(log, part, tuple(tokens[start:end]))
        for part, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
    ]


def read_plan(directory: ScoreDirectory) -> Plan:
    """Raises ConvoyError where there is none that can be read."""
    path = directory.plan
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ConvoyError(
                f"{path} is of version {content['version']}, and this Convoy writes version "
                f"{VERSION}. Score into another directory: --out DIR."
            )
        units = tuple(
            Unit(unit["log"], unit["part"], tuple(unit["tokens"]), tuple(unit["files"]))
            for unit in content["units"]
        )
        for unit in units:
            require_name(unit.log, "log")  # it becomes a file's name
        return Plan(content["identity"], units)
    except DAMAGED as error:
        raise ConvoyError(
            f"{path} is damaged ({error!r}). Delete the directory, or give another --out."
        ) from error


def _require_name(log: str) -> None:
    try:
        require_name(log, "log")
    except ValueError as error:
        raise ConvoyError(f"A log cannot be scored under its name: {error}.") from error
