"""The figures of a scoring: means as NAVSIM's script has them, with confidence intervals."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.navsim.score_table import AVERAGE, COMBINED

SCORE = "score"
RESAMPLES = 2000
LEVEL = 0.95
SUMMARY_ROWS = (
    AVERAGE,
    "extended_pdm_score_stage_one",
    "extended_pdm_score_stage_two",
    COMBINED,
)


@dataclass(frozen=True)
class Table:
    """NAVSIM's CSV: `values` (tokens, columns) of each token, NaN where it failed or has none;
    `means` are those of its last row."""

    columns: tuple[str, ...]
    tokens: tuple[str, ...]
    values: np.ndarray
    means: Mapping[str, float]

    @classmethod
    def parse(cls, content: bytes) -> "Table":
        header, *lines = csv.reader(io.StringIO(content.decode()))
        first = header.index("valid") + 1
        columns = tuple(header[first:])
        token = header.index("token")
        scenes = [line for line in lines if line[token] not in SUMMARY_ROWS]
        values = np.array([[_number(text) for text in line[first:]] for line in scenes])
        means = dict(zip(columns, map(_number, lines[-1][first:]), strict=True))
        return cls(columns, tuple(line[token] for line in scenes), values, means)

    def column(self, name: str) -> np.ndarray:
        return self.values[:, self.columns.index(name)]


def metrics(table: Table, log_of: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Mean and 95 % confidence interval of each column, from `low` to `high`.

    The mean is NAVSIM's. Scenes of one log are alike, so the interval comes from drawing whole logs
    again (cluster bootstrap, percentiles; Cameron, Gelbach and Miller, 2008). It is None for one
    log, and for two stages, whose figures are weighted means over groups of scenes.
    """
    logs = [log_of[token] for token in table.tokens]
    two_stage = any(name.endswith("_stage_two") for name in table.columns)
    found: dict[str, dict[str, float | None]] = {}
    for name in table.columns:
        low, high = (None, None) if two_stage else interval(table.column(name), logs)
        found[name] = {"mean": _or_none(table.means[name]), "low": low, "high": high}
    return found


def interval(values: np.ndarray, logs: Sequence[str]) -> tuple[float | None, float | None]:
    """Confidence interval of the mean of `values` (n,), NaN left out, of scenes of `logs`."""
    names = sorted(set(logs))
    index = np.array([names.index(log) for log in logs])
    good = np.isfinite(values)
    sums = np.bincount(index[good], values[good], len(names))
    counts = np.bincount(index[good], minlength=len(names))
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(counts) < 2:
        return None, None
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
