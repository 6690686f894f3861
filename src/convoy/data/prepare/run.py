"""Prepares one task's share: units over worker processes, each unit one shard; the first task ends
the whole."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from convoy import __version__
from convoy.data import pool
from convoy.data.layout import Layout
from convoy.data.packing import probe
from convoy.data.prepare.inputs import Input, Loaded
from convoy.data.prepare.plan import Preparation, Unit, missing_at_start, open_preparation, share
from convoy.data.prepare.tasks import TaskBoard
from convoy.data.shard import Shard
from convoy.data.shard_writer import ShardWriter, WriteError
from convoy.data.shards import (
    MANIFEST,
    SHARDS,
    Manifest,
    entry_path,
    read_entry,
    require_one_schema,
    require_unique_tokens,
    write_manifest,
)
from convoy.data.values import NotPackable, Values
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.topology import Task

PROBED = 8  # samples that the first layout is found with, of different logs
REASON = 300  # characters that are kept of what another's exception says


@dataclass(frozen=True)
class Options:
    samples_per_shard: int = 256
    workers: int | None = None  # None: one per core that this process may use
    allow_non_finite: bool = False
    retry_failed: bool = False


@dataclass(frozen=True)
class Progress:
    """Over all tasks of this start.

    `units` are shards finished, of `units_total` in the whole preparation.
    """

    done: int
    failed: int
    units: int
    units_total: int


@dataclass(frozen=True)
class Outcome:
    """What one task did. `manifest` is that of the whole data set, on the task that finished it."""

    shards: tuple[Shard, ...]
    seconds: float
    manifest: Manifest | None


def prepare(
    source: Input,
    out: Path,
    options: Options,
    task: Task,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Do this task's share of what is missing in `out`; task 0 also waits for the others and writes
    the manifest.

    Raises ConvoyError when nothing could be packed, when another start is at work there, or on a
    full disk; finished shards are kept whatever happens.
    """
    started = time.monotonic()
    _make(out)
    board = TaskBoard(out, task)
    board.open()
    state = "stopped"
    try:
        preparation = open_preparation(
            out, _identity(source, options), lambda: _begin(source, options)
        )
        missing = missing_at_start(
            out, task.start, lambda: preparation.missing(out, options.retry_failed)
        )
        if missing:
            (out / MANIFEST).unlink(missing_ok=True)  # it says that all is there
        mine = share(preparation.units, missing, task.number, task.count)
        shards = tuple(_work(source, out, options, preparation, mine, board, progress))
        state = "finished"
    finally:
        board.close(state)
    manifest = None
    if task.number == 0:
        board.wait(
            lambda: len(preparation.missing(out)),
            len(preparation.units),
            "shards",
            lambda: _report(out, preparation, board, progress),
        )
        manifest = _finish(source, out, preparation)
        board.remove()
    return Outcome(shards, time.monotonic() - started, manifest)


@dataclass(frozen=True)
class _Work:
    """What every worker process gets."""

    source: Input
    out: Path
    layout: Layout
    allow_non_finite: bool


def pack_unit(work: _Work, unit: Unit) -> Shard:
    """Pack one unit in this process.

    A sample that fails is noted in the shard's entry, with the reason.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with ShardWriter(work.out, unit.log, unit.part, work.layout, work.allow_non_finite) as writer:
        for token, load in _samples(work.source, unit):
            try:
                sample, spent = load()
                loaded = time.perf_counter()
                writer.add(token, sample)
            except WriteError:
                raise
            except Exception as error:  # whatever an agent's builder may raise, MemoryError too
                writer.fail(token, _reason(error))
                _count(failed=1)
                continue
            for kind, value in (spent | {"packing": time.perf_counter() - loaded}).items():
                seconds[kind] = seconds.get(kind, 0.0) + value
            _count(done=1)
        seconds["all"] = time.perf_counter() - started
        return writer.finish(seconds)


def _samples(source: Input, unit: Unit) -> Iterator[tuple[str, Callable[[], Loaded]]]:
    """The unit's samples; a log that cannot be opened is one sample, `*`, that fails."""
    samples = source.samples(unit)
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except Exception as error:  # NAVSIM unpickles the log
            yield "*", partial(_raise, error)
            return
        yield sample


def _raise(error: Exception) -> Loaded:
    raise error


def _reason(error: Exception) -> str:
    """In one line; Convoy's own errors say it all, of others the type is shown too."""
    text = " ".join(str(error).split())
    own = isinstance(error, (ConvoyError, NotPackable))
    return text if own else f"{type(error).__name__}: {text[:REASON]}".rstrip(": ")


def _make(out: Path) -> None:
    try:
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvoyError(
            f"{out} cannot be written: {error.strerror}. Give another directory."
        ) from error


def _identity(source: Input, options: Options) -> dict[str, Any]:
    return source.describe() | {
        "builders": [
            [builder.name, builder.role, builder.cls, builder.config] for builder in source.builders
        ],
        "samples_per_shard": options.samples_per_shard,
        "allow_non_finite": options.allow_non_finite,
    }


def _begin(source: Input, options: Options) -> tuple[Sequence[Unit], Layout]:
    """List the units, and find the layout that fits some samples of different logs.

    Raises ConvoyError when none of these can be made: then the others would not be either.
    """
    source.start_worker()
    units = source.units(options.samples_per_shard, options.workers)
    failures: list[str] = []

    def some() -> Iterator[Values]:
        for unit in units[:: max(1, len(units) // PROBED)][:PROBED]:
            for token, load in islice(_samples(source, unit), 1):
                try:
                    sample = load()[0]
                    probe([sample], options.allow_non_finite)
                except Exception as error:  # whatever an agent's builder may raise
                    failures.append(f"{unit.log}/{token}: {_reason(error)}")
                else:
                    yield sample

    try:
        return units, probe(some(), options.allow_non_finite)
    except NotPackable as error:
        first = failures[0] if failures else str(error)
        raise ConvoyError(
            f"None of the first {len(failures)} samples could be made. {first}"
        ) from error


def _work(
    source: Input,
    out: Path,
    options: Options,
    preparation: Preparation,
    mine: Sequence[int],
    board: TaskBoard,
    progress: Callable[[Progress], None],
) -> Iterator[Shard]:
    global _counters
    _counters = multiprocessing.get_context("spawn").Array("q", 2)
    work = _Work(source, out, preparation.layout, options.allow_non_finite)
    units = [preparation.units[number] for number in mine]
    for unit in units:
        entry_path(out, unit.name).unlink(missing_ok=True)  # of a shard that is to be tried again
    with _reporting(out, preparation, board, progress):
        prepare = partial(_start_worker, source, _counters)
        for _, shard in pool.run(pack_unit, work, units, options.workers, prepare):
            yield shard


def _finish(source: Input, out: Path, preparation: Preparation) -> Manifest:
    """Put all shards' entries together.

    Raises ConvoyError when they do not go together, or hold nothing.
    """
    shards = []
    for unit in preparation.units:
        shard = read_entry(out, unit.name)
        assert shard is not None, "nothing is missing"
        shards.append(shard)
    require_one_schema(shards)
    require_unique_tokens(shards)
    if not any(shard.tokens for shard in shards):
        first = next((failure for shard in shards for failure in shard.failures), None)
        why = (
            f": {first.log}/{first.token}: {first.reason}"
            if first
            else ": the logs hold no scene of this split"
        )
        raise ConvoyError(f"Not one sample could be prepared{why}.")
    origin = source.describe() | {"convoy": __version__, "navsim_commit": tree.commit()}
    manifest = Manifest(source.builders, origin, tuple(shards))
    write_manifest(out, manifest)
    return manifest


@contextmanager
def _reporting(
    out: Path, preparation: Preparation, board: TaskBoard, progress: Callable[[Progress], None]
) -> Iterator[None]:
    """Report twice a second, from a thread, while the workers count."""
    stop = threading.Event()

    def report() -> None:
        while not stop.wait(0.5):
            _report(out, preparation, board, progress)

    thread = threading.Thread(target=report, name="convoy-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _report(out, preparation, board, progress)


def _report(
    out: Path, preparation: Preparation, board: TaskBoard, progress: Callable[[Progress], None]
) -> None:
    assert _counters is not None
    done, failed = _counters[:]
    board.count(done, failed)
    others = (
        [sign for sign in board.signs() if sign.task != board.task.number]
        if board.task.number == 0
        else []
    )
    total = len(preparation.units)
    progress(
        Progress(
            done + sum(sign.done for sign in others),
            failed + sum(sign.failed for sign in others),
            total - len(preparation.missing(out)),
            total,
        )
    )


_counters: Any = None  # samples done and failed in this start, over this task's processes


def _start_worker(source: Input, counters: Any) -> None:
    global _counters
    _counters = counters
    source.start_worker()


def _count(done: int = 0, failed: int = 0) -> None:
    if _counters is not None:
        with _counters.get_lock():
            _counters[0] += done
            _counters[1] += failed
