"""Checkpoint files: written in the background, whole or not there, verified before they are used.

One checkpoint is one file in torch's zip format, which holds a CRC-32 of every tensor; torch does
not check them when it loads, `verify` does. torch.distributed.checkpoint writes a directory of
shards, which no agent's `initialize` can read.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import queue
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO
from torch import Tensor

from convoy.errors import ConvoyError
from convoy.run.atomic import leftovers, replacing, sync_folder
from convoy.run.layout import RunDirectory
from convoy.training.host_copy import HostCopy, named_tensors

logger = logging.getLogger("convoy")

MOST_WAITING = 8  # checkpoints that wait to be scored; a job that scores may be long in the queue


class DamagedCheckpoint(ConvoyError):
    """A checkpoint that is cut, empty, changed, or not one at all. Says which and why."""


class UnfitCheckpoint(ConvoyError):
    """A state that must not be saved: it is not finite, or could not be loaded again."""


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run: a file per step, and links to the newest and the best."""

    run: RunDirectory

    def point(self, link: Path, target: Path) -> None:
        """Let `link` name `target`; at every moment it names a checkpoint that is whole."""
        beside = link.with_name(f".{link.name}.{os.getpid()}-{time.time_ns()}")
        beside.symlink_to(target.name)
        beside.replace(link)
        sync_folder(link.parent)

    def rotate(self, keep: int) -> None:
        """Remove all but the newest `keep` and what the links name."""
        links = (self.run.last_checkpoint, self.run.best_checkpoint)
        named = {link.resolve() for link in links if link.is_symlink()}
        for path in self.run.step_checkpoints()[keep:]:
            if path.resolve() not in named:
                path.unlink(missing_ok=True)

    def offer_for_score(self, path: Path, step: int) -> None:
        """Keep `path` under a second name until it is scored; of those that wait too long, the
        oldest go."""
        try:
            with contextlib.suppress(FileExistsError):
                os.link(path, self.run.waiting_for_score(step))
        except OSError as error:
            logger.warning(
                "%s cannot be kept for scoring (%s): convoy score scores it by hand.",
                path,
                error.strerror,
            )
        for oldest in self.run.all_waiting_for_score()[:-MOST_WAITING]:
            logger.warning("%s waited too long to be scored and was removed.", oldest)
            oldest.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what killed writers left. Only the run's owner may: nobody else writes here."""
        for path in leftovers(self.run.checkpoints):
            path.unlink(missing_ok=True)

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that `verify` passes; each one that it does not is reported.

        Raises DamagedCheckpoint when there are checkpoints and none is whole.
        """
        damaged = []
        for path in self.run.step_checkpoints():
            try:
                verify(path)
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                logger.warning("%s Falling back to the checkpoint before it.", error)
                continue
            return path
        if damaged:
            raise DamagedCheckpoint(
                f"None of the {len(damaged)} checkpoints in {self.run.checkpoints} is whole. The "
                f"newest: {damaged[0]} Start anew with another run_dir, or remove them."
            )
        return None


def verify(path: Path) -> None:
    """Raise DamagedCheckpoint unless `path` is complete and every tensor has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise DamagedCheckpoint(f"The checkpoint {path} is damaged: {bad} was changed.")
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DamagedCheckpoint:
        raise
    except Exception as error:
        raise DamagedCheckpoint(_reason(path, error)) from error


def load(path: Path) -> dict[str, Any]:
    """The verified content of `path`, tensors on the host. Raises DamagedCheckpoint."""
    verify(path)
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def fingerprint(path: Path) -> str:
    """A digest of all names, sizes and checksums in `path`, from its last few kilobytes alone.

    Raises DamagedCheckpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
    except Exception as error:
        raise DamagedCheckpoint(_reason(path, error)) from error
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"The checkpoint {path} is not there."
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return f"The checkpoint {path} is empty."
    if isinstance(error, zipfile.BadZipFile):
        return f"The checkpoint {path} is cut or damaged ({size} bytes): {error}."
    if isinstance(error, OSError):
        return f"The checkpoint {path} cannot be read: {error.strerror or error}."
    return (
        f"The checkpoint {path} holds something other than tensors and plain values, so Convoy did "
        f"not write it and does not load it ({type(error).__name__})."
    )


def _require_loadable(path: Path) -> None:
    """Raise UnfitCheckpoint for a state that `load` would refuse; reads no tensor."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UnfitCheckpoint(
            "The state of this training cannot be loaded again: it holds something other than "
            "tensors and plain values. Look at the state_dict of the agent, its optimiser, its "
            f"scheduler and its callbacks. {str(error).splitlines()[0]}"
        ) from error


def not_finite(checkpoint: Mapping[str, Any], parameters: frozenset[str]) -> list[str]:
    """Names of tensors that hold NaN, or infinity where only an attention mask's buffer may.

    `parameters` are the keys of `state_dict` that are trained; the rest are buffers.
    """
    states = checkpoint.get("optimizer_states", [])
    checked = [(f"optimizer {name}", tensor, False) for name, tensor in named_tensors(states)]
    checked += [
        (name, tensor, name not in parameters)
        for name, tensor in named_tensors(checkpoint.get("state_dict", {}))
    ]
    return [name for name, tensor, may_be_infinite in checked if _bad(tensor, may_be_infinite)]


def _bad(tensor: Tensor, may_be_infinite: bool) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    # The sum is five times as fast as looking at each element, and finite only if all of them are.
    if bool(torch.isfinite(tensor.detach().sum())):
        return False
    wrong = torch.isnan(tensor) if may_be_infinite else ~torch.isfinite(tensor)
    return bool(wrong.any())


@dataclass
class _Job:
    checkpoint: dict[str, Any]
    path: Path
    begun: float
    done: Callable[[Path], None] | None = None


@dataclass
class CheckpointWriter(CheckpointIO):
    """Lightning's way to a file: copies the state to the host, then writes it in a thread.

    `guard` is called in the thread before a file takes its name, and may raise ConvoyError. The
    training goes on after a full disk (`failure` says so until a later write succeeds) and ends
    after a ConvoyError (`refusal`).
    """

    guard: Callable[[], None] = lambda: None
    parameters: frozenset[str] = frozenset()
    failure: str | None = field(default=None, init=False)
    refusal: ConvoyError | None = field(default=None, init=False)
    held_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._host_copy = HostCopy()
        self._done: Callable[[Path], None] | None = None

    def then(self, done: Callable[[Path], None]) -> "CheckpointWriter":
        """Call `done` with the path, in the thread, after the next file is whole."""
        self._done = done
        return self

    @property
    def busy(self) -> bool:
        return self._jobs.unfinished_tasks > 0

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Hold the caller for the copy to the host only, or until the write before is done."""
        begun = time.monotonic()
        self._jobs.join()
        done, self._done = self._done, None
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._jobs.put(_Job(self._host_copy.of(checkpoint), Path(path), begun, done))
        self.held_seconds += time.monotonic() - begun

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)

    def wait(self) -> None:
        """Return when all is written, or refused."""
        self._jobs.join()

    def teardown(self) -> None:
        """Lightning calls this at the end of everything, errors included."""
        self._jobs.join()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
            self._host_copy = HostCopy()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write(job)
            except ConvoyError as error:
                self.refusal = error
            except Exception as error:  # a full disk comes as OSError or, from torch, RuntimeError
                self._note_failure(job.path, error)
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def _write(self, job: _Job) -> None:
        bad = not_finite(job.checkpoint, self.parameters)
        if bad:
            step = job.checkpoint.get("global_step")
            raise UnfitCheckpoint(
                f"After step {step}, {len(bad)} tensors of the model or its optimiser are not "
                f"finite (the first: {bad[0]}). No checkpoint is written of them: the last one is "
                "from before. Lower the learning rate, or set trainer.params.gradient_clip_val."
            )
        with replacing(job.path) as file:
            torch.save(job.checkpoint, file)
            file.flush()
            _require_loadable(Path(file.name))
            self.guard()
        if job.done is not None:
            job.done(job.path)
        self.failure = None
        logger.debug("%s written, %.1f s after it was due", job.path, time.monotonic() - job.begun)

    def _note_failure(self, path: Path, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [repr(error)])[0]
        self.failure = f"The checkpoint {path} could not be written: {reason}."
        logger.warning(
            "%s The previous one is whole; the next one is tried as usual.", self.failure
        )
