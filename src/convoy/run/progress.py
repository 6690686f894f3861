"""How far a run is, in a small file that host tools read. Standard library only."""

import json
import time
from dataclasses import asdict, dataclass

from convoy.run.layout import RunDirectory

SECONDS_BETWEEN_WRITES = 5.0  # a shared file system is not asked more often


@dataclass(frozen=True)
class RunProgress:
    """The last report of rank 0. `loss` is the mean over ranks and steps since the one before, None
    before the first; `time` is Unix time."""

    start: str
    step: int
    steps: int
    epoch: int
    loss: float | None
    samples_per_s: float
    seconds_left: float
    time: float


class ProgressFile:
    """Writes the run's `progress.json`: whole at any moment, and not at every step."""

    def __init__(self, run: RunDirectory) -> None:
        self._path = run.progress
        self._written = 0.0

    def write(self, progress: RunProgress, at_once: bool = False) -> None:
        """Replace the file, unless that was done a moment ago. A full disk ends no run here."""
        now = time.monotonic()
        if not at_once and now - self._written < SECONDS_BETWEEN_WRITES:
            return
        self._written = now
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(progress)) + "\n")
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


def read_progress(run: RunDirectory) -> RunProgress | None:
    """The last report, or None where there is none that can be read."""
    try:
        return RunProgress(**json.loads(run.progress.read_text()))
    except (OSError, ValueError, TypeError):
        return None
