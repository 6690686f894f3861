"""What is to be prepared, written down once in `<dir>/preparation.json`, and which task of a start
does what of it.

Tasks do not talk to each other. They agree by files that only one of them can create: the
preparation, and for each start the list of what is still missing; everything else follows from
those two by arithmetic.
"""

import heapq
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from convoy.data.entries import require_name
from convoy.data.layout import Layout, layout_from_json, layout_to_json
from convoy.data.shard import shard_name
from convoy.data.shards import DAMAGED, SHARDS, read_entry
from convoy.errors import ConvoyError

PREPARATION = "preparation.json"
STARTS = ".starts"
MISSING = "missing.json"
VERSION = 1


@dataclass(frozen=True)
class Unit:
    """What becomes one shard: part `part` of `parts` of a log. `weight` says how much work it is,
    relative to others.

    `tokens` are its samples; None stands for a log that could not be listed.
    """

    log: str
    part: int
    parts: int
    weight: int
    tokens: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return shard_name(self.log, self.part)


@dataclass(frozen=True)
class Preparation:
    """`identity` is what makes two preparations the same: their source, builders and versions."""

    identity: Mapping[str, Any]
    units: tuple[Unit, ...]
    layout: Layout

    def missing(self, root: Path, retry_failed: bool = False) -> list[int]:
        """Numbers of the units whose shard is not finished; with `retry_failed` also of those that
        left samples out."""
        done = {path.stem for path in (root / SHARDS).glob("*.json")}
        return [
            number
            for number, unit in enumerate(self.units)
            if unit.name not in done or (retry_failed and _left_out(root, unit))
        ]


def open_preparation(
    root: Path, identity: Mapping[str, Any], begin: Callable[[], tuple[Sequence[Unit], Layout]]
) -> Preparation:
    """The preparation of `root`; where there is none yet, `begin` lists its units and probes its
    layout.

    Raises ConvoyError, naming the differences, when `root` belongs to another preparation.
    """
    path = root / PREPARATION
    if not path.exists():
        units, layout = begin()
        content = {
            "version": VERSION,
            "identity": identity,
            "units": [asdict(unit) for unit in units],
            "layout": layout_to_json(layout),
        }
        create_once(path, content)
    preparation = _read(path)
    changed = changes(preparation.identity, identity)
    if changed:
        raise ConvoyError(
            f"{root} belongs to another preparation: {'; '.join(changed[:4])}. Give another "
            "directory, or the same arguments to continue that one."
        )
    return preparation


def changes(held: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, `held` as JSON gave it back; a few words each."""
    now = json.loads(json.dumps(now))
    return [
        f"{key}: {_short(held.get(key))} -> {_short(now.get(key))}"
        for key in sorted(held.keys() | now.keys())
        if held.get(key) != now.get(key)
    ]


def missing_at_start(root: Path, start: str, missing: Callable[[], list[int]]) -> list[int]:
    """The numbers of the units that this start has to do; `missing` finds them once for all of its
    tasks."""
    path = start_folder(root, start) / MISSING
    if not path.exists():
        create_once(path, missing())
    found: list[int] = json.loads(path.read_text())
    return found


def _left_out(root: Path, unit: Unit) -> bool:
    shard = read_entry(root, unit.name)
    return shard is not None and bool(shard.failures)


class Weighted(Protocol):
    @property
    def weight(self) -> int: ...


def share(units: Sequence[Weighted], missing: Sequence[int], task: int, tasks: int) -> list[int]:
    """The numbers of the units that `task` of `tasks` does: largest first, each to the task that
    has least."""
    loads = [(0, number) for number in range(tasks)]
    mine = []
    for number in sorted(missing, key=lambda number: (-units[number].weight, number)):
        load, owner = heapq.heappop(loads)
        heapq.heappush(loads, (load + units[number].weight, owner))
        if owner == task:
            mine.append(number)
    return mine


def start_folder(root: Path, start: str) -> Path:
    return root / STARTS / start


def create_once(path: Path, content: Any) -> None:
    """Write `path` unless it is there; of several that try at once, one succeeds and no one sees
    half of it."""
    temporary = path.with_name(
        f".{path.name}.{os.uname().nodename}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails where the name is taken, on network file systems too
        except FileExistsError:
            pass
    except OSError as error:
        raise ConvoyError(f"{path} could not be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Preparation:
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ConvoyError(
                f"{path} is of version {content['version']}, and this Convoy writes version "
                f"{VERSION}. Continue with the Convoy that began it, or prepare into a new "
                "directory."
            )
        units = tuple(
            Unit(**unit | {"tokens": None if unit["tokens"] is None else tuple(unit["tokens"])})
            for unit in content["units"]
        )
        for unit in units:
            require_name(unit.log, "log")  # it becomes a file's name
        return Preparation(content["identity"], units, layout_from_json(content["layout"]))
    except DAMAGED as error:
        raise ConvoyError(
            f"{path} is damaged ({error!r}). Prepare into a new directory."
        ) from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
