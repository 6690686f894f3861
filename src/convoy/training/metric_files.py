"""Metrics' files that survive a full disk: what cannot be written is reported once, the training
goes on, and nothing that was written before is damaged."""

import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment

logger = logging.getLogger("convoy")


class CsvFile(CSVLogger):
    """Rows that found no room stay in memory, and come with the next ones."""

    _reported = False

    def save(self) -> None:
        if isinstance(self.experiment, DummyExperiment):
            return  # another rank than 0
        path = Path(self.experiment.metrics_file_path)
        before = path.stat().st_size if path.exists() else 0
        try:
            super().save()
            self._reported = False
        except OSError as error:
            if path.exists():
                os.truncate(path, before)  # no half row
            self._reported = _report(self._reported, path, error)


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
        logger.warning("%s cannot be written: %s. The training goes on.", path, reason)
    return True
