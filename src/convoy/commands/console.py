"""The one console of the commands: tables on standard output, progress on standard error.

On a terminal progress is a bar; elsewhere it is a line every few seconds.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from convoy.errors import ConvoyError

if TYPE_CHECKING:  # rich takes a tenth of a second, which --help does not need
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

WIDTH_OF_LOGS = 160  # columns where there is no terminal: tables in logs are not squeezed
SECONDS_BETWEEN_LINES = 5.0


def console() -> "Console":
    """Standard output. Text is shown as it is: others' names and reasons may look like markup.

    Raises ConvoyError on a login node's bare Python.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise ConvoyError(
            "Tables and bars need the Python package rich: make venv and then .venv/bin/convoy, "
            "or --json, which needs nothing."
        ) from error

    width = None if sys.stdout.isatty() else WIDTH_OF_LOGS
    return Console(width=width, markup=False, emoji=False)


class Progress(Protocol):
    """Shows how far some work is."""

    def show(self, completed: int, total: int, note: str = "") -> None:
        """`completed` of `total` units are done; `note` goes before the numbers."""
        ...

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        ...


@contextmanager
def progress(unit: str, total: int | None = None) -> Iterator[Progress]:
    """A bar on a terminal, else lines; `unit` is what is counted, in the plural."""
    if not sys.stderr.isatty():
        yield _Lines(unit, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task("", total=total))


class _Bar:
    def __init__(self, bar: "RichProgress", task: "TaskID") -> None:
        self._bar, self._task = bar, task

    def show(self, completed: int, total: int, note: str = "") -> None:
        self._bar.update(self._task, completed=completed, total=total, description=note)

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)


class _Lines:
    """The time left is judged by what was done since the first call: earlier work may have been
    found done."""

    def __init__(self, unit: str, total: int | None) -> None:
        self._unit, self._total = unit, total
        self._completed = 0
        self._first: int | None = None
        self._started = self._printed = time.monotonic()

    def show(self, completed: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        self._completed, self._total = completed, total
        self._first = completed if self._first is None else self._first
        if now - self._printed < SECONDS_BETWEEN_LINES or completed >= total:
            return
        self._printed = now
        left = "an unknown time"
        if completed > self._first:
            seconds = (now - self._started) / (completed - self._first) * (total - completed)
            left = f"about {seconds:.0f} s"
        before = f"{note}; " if note else ""
        print(
            f"{before}{completed} of {total} {self._unit}, {left} left", file=sys.stderr, flush=True
        )

    def advance(self, count: int) -> None:
        self._first = self._first or 0
        self.show(self._completed + count, self._total or 0)
