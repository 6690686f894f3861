"""Metrics' files that survive a full disk: what cannot be written is reported once, the training
continues, and nothing that was written before is damaged."""

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment

from convoy.run.atomic import write_text

logger = logging.getLogger("convoy")


class CsvFile(CSVLogger):
    """Rows that found no room stay in memory, and come with the next ones.

    Lightning empties the file to write it with a new column, and takes a file that it could only
    create for one that has its header: here the file is replaced as a whole, or appended to.
    """

    _reported = False

    def save(self) -> None:
        table = self.experiment
        if isinstance(table, DummyExperiment) or not table.metrics:
            return  # another rank than 0, or nothing new
        path = Path(table.metrics_file_path)
        columns = sorted({*table.metrics_keys, *(key for row in table.metrics for key in row)})
        size = path.stat().st_size if path.exists() else 0
        try:
            if size and columns == table.metrics_keys:
                _append(path, size, columns, table.metrics)
            else:
                _replace(path, columns, table.metrics)
        except OSError as error:
            self._reported = _report(self._reported, path, error)
        else:
            table.metrics, table.metrics_keys, self._reported = [], columns, False


def _append(path: Path, size: int, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Raises OSError, and leaves no half row."""
    try:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerows(rows)
    except OSError:
        os.truncate(path, size)
        raise


def _replace(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """The same rows and these, under a header of all `columns`. Raises OSError, and leaves `path`
    as it was."""
    before: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            before = list(csv.DictReader(file))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows([*before, *rows])
    write_text(path, text.getvalue(), durable=False)


class TensorBoardFile(TensorBoardLogger):
    """Events that found no room are lost, those of agents' callbacks too."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        if not isinstance(writer, DummyExperiment):
            files = writer._get_file_writer()
            if not isinstance(files.event_writer, _Events):
                files.event_writer = _Events(files.event_writer, Path(self.log_dir))
        return writer


class _Events:
    """TensorBoard's writer of events; it writes in a thread, and raises at the next event."""

    def __init__(self, writer: Any, folder: Path) -> None:
        self._writer, self._folder = writer, folder
        self._reported = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def add_event(self, event: Any) -> None:
        self._try(self._writer.add_event, event)

    def flush(self) -> None:
        self._try(self._writer.flush)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            self._reported = _report(self._reported, self._folder, error)


def _report(reported: bool, path: Path, error: OSError) -> bool:
    if not reported:
        reason = error.strerror or error
        logger.warning("%s cannot be written: %s. The training continues.", path, reason)
    return True
