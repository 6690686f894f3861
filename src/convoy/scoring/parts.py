"""What one unit leaves: trajectories, and the columns of its scenes, as .npz files without pickles.

Values come back exactly, dtypes included.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ConvoyError
from convoy.run.atomic import replacing

COLUMN = "column/"  # before the name of a column in a file of rows


@dataclass(frozen=True)
class Trajectories:
    """Of a unit's scenes, in their order. `poses` is (n, poses, 3), NaN where `reasons` has a
    reason."""

    tokens: tuple[str, ...]
    poses: np.ndarray
    interval: float  # seconds
    reasons: tuple[str, ...]

    @classmethod
    def of(
        cls, tokens: Sequence[str], found: Sequence[np.ndarray | str], interval: float
    ) -> "Trajectories":
        """`found` has the poses of each token, or the reason why there are none. Poses that are not
        finite, or of another number than the others', are a reason too."""
        shape = next((poses.shape for poses in found if isinstance(poses, np.ndarray)), (0, 3))
        checked = [_checked(poses, shape) for poses in found]
        good = [poses for poses in checked if isinstance(poses, np.ndarray)]
        dtype = good[0].dtype if good else np.dtype(np.float32)
        poses = np.full((len(tokens), *shape), np.nan, dtype)
        for index, entry in enumerate(checked):
            if isinstance(entry, np.ndarray):
                poses[index] = entry
        reasons = tuple(entry if isinstance(entry, str) else "" for entry in checked)
        return cls(tuple(tokens), poses, interval, reasons)

    def write(self, path: Path) -> None:
        _write(
            path,
            tokens=np.array(self.tokens),
            poses=self.poses,
            interval=np.array(self.interval),
            reasons=np.array(self.reasons),
        )

    @classmethod
    def read(cls, path: Path) -> "Trajectories":
        held = _read(path)
        return cls(
            tuple(held["tokens"].tolist()),
            held["poses"],
            float(held["interval"]),
            tuple(held["reasons"].tolist()),
        )


@dataclass(frozen=True)
class Rows:
    """The columns of a unit's scenes: of each token a dict, or the reason why it failed."""

    tokens: tuple[str, ...]
    rows: tuple[dict[str, Any] | str, ...]

    @property
    def failures(self) -> dict[str, str]:
        return {
            token: row
            for token, row in zip(self.tokens, self.rows, strict=True)
            if isinstance(row, str)
        }

    def write(self, path: Path) -> None:
        good = [row for row in self.rows if not isinstance(row, str)]
        columns = (
            {COLUMN + name: np.stack([np.asarray(row[name]) for row in good]) for name in good[0]}
            if good
            else {}
        )
        reasons = np.array([row if isinstance(row, str) else "" for row in self.rows])
        _write(path, tokens=np.array(self.tokens), reasons=reasons, **columns)

    @classmethod
    def read(cls, path: Path) -> "Rows":
        held = _read(path)
        columns = {
            name.removeprefix(COLUMN): values
            for name, values in held.items()
            if name.startswith(COLUMN)
        }
        rows: list[dict[str, Any] | str] = []
        good = 0
        for reason in held["reasons"].tolist():
            if reason:
                rows.append(reason)
                continue
            rows.append({name: _value(values[good]) for name, values in columns.items()})
            good += 1
        return cls(tuple(held["tokens"].tolist()), tuple(rows))


def _checked(found: np.ndarray | str, shape: tuple[int, ...]) -> np.ndarray | str:
    if isinstance(found, str):
        return found
    if found.shape != shape:
        return f"the trajectory has the shape {found.shape}, others have {shape}"
    if not np.isfinite(found).all():
        return f"the trajectory holds {int((~np.isfinite(found)).sum())} values that are not finite"
    return found


def _value(value: Any) -> Any:
    """An array as it is; a scalar as Python's own, which has the same value."""
    return value if isinstance(value, np.ndarray) and value.ndim else value.item()


def _write(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    try:
        with replacing(path, durable=False) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise ConvoyError(
            f"{path} could not be written: {error.strerror}. What is finished is kept: run the "
            "same command again."
        ) from error


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(held)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConvoyError(
            f"{path} cannot be read ({error}). Delete it and run the same command again."
        ) from error
