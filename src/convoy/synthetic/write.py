"""Write a synthetic cache in NAVSIM's layout with many processes."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convoy.data import pool
from convoy.errors import ConvoyError

BUILDERS = ("transfuser_feature", "transfuser_target", "ego_status_feature", "trajectory_target")

# Part of each token. To be raised when the generator changes, so that a cache never mixes two
# versions.
_VERSION = 1
_SAMPLES_PER_TASK = 8


@dataclass(frozen=True)
class CacheSummary:
    """What `write_cache` made; `samples` and `bytes` include what an earlier run had written."""

    path: Path
    samples: int
    logs: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Plan:
    """Where each sample goes: sample i belongs to log i mod `logs`."""

    out: Path
    logs: int
    seed: int

    def directory(self, index: int) -> Path:
        key = f"convoy-synthetic/{_VERSION}/{self.seed}/{self.logs}/{index}"
        token = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self.out / _log_name(index % self.logs, self.seed) / token


def log_names(logs: int, seed: int) -> list[str]:
    """Names of the log directories of a cache, in order."""
    return [_log_name(log, seed) for log in range(logs)]


def _log_name(log: int, seed: int) -> str:
    return f"synthetic-{seed}-{log:03d}"


def write_cache(
    out: Path,
    samples: int,
    logs: int,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CacheSummary:
    """Write `samples` samples spread evenly over `logs` logs; the files' bytes depend on the seed
    only.

    An interrupted call is completed by calling again. `workers` processes are used, by default one
    per available CPU; 1 works in this process. `progress` is called with the number of samples just
    done.

    Raises `ConvoyError` for numbers out of range, an `out` that holds anything else, or a failed
    write.
    """
    started = time.monotonic()
    check_numbers(samples, logs, seed, workers)
    out = Path(out)
    plan = _Plan(out, logs, seed)
    _check_directory(plan, samples)
    tasks = [
        range(i, min(i + _SAMPLES_PER_TASK, samples)) for i in range(0, samples, _SAMPLES_PER_TASK)
    ]
    total = 0
    for task, size in pool.run(_write_samples, plan, tasks, workers, prepare=_one_thread):
        total += size
        if progress:
            progress(len(task))
    return CacheSummary(out, samples, logs, total, time.monotonic() - started)


def check_numbers(samples: int, logs: int, seed: int, workers: int | None) -> None:
    """Raises ConvoyError for numbers that no data set can be made of."""
    if samples < 1 or logs < 1:
        raise ConvoyError(
            f"samples and logs must be at least 1, got samples={samples} and logs={logs}."
        )
    if samples < logs:
        raise ConvoyError(f"Each log needs a sample: samples={samples} is less than logs={logs}.")
    if seed < 0:
        raise ConvoyError(f"The seed must be 0 or more, got {seed}.")
    pool.check_workers(workers)


def _check_directory(plan: _Plan, samples: int) -> None:
    """Refuse a directory that holds something which this call would not write."""
    if not plan.out.exists():
        return
    if not plan.out.is_dir():
        raise ConvoyError(
            f"{plan.out} is a file; the cache needs a directory that is new or empty."
        )
    expected = {plan.directory(index) for index in range(samples)}
    expected_logs = {directory.parent for directory in expected}
    for log in sorted(plan.out.iterdir()):
        foreign = log if log not in expected_logs or not log.is_dir() else None
        if foreign is None:
            foreign = next(
                (token for token in sorted(log.iterdir()) if token not in expected), None
            )
        if foreign is not None:
            raise ConvoyError(
                f"{plan.out} holds {foreign.relative_to(plan.out)}, which samples={samples} "
                f"logs={plan.logs} seed={plan.seed} does not make.\nChoose another directory, or "
                "remove this one first."
            )


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write_samples(plan: _Plan, indices: range) -> int:
    """Write the samples that are not there in full; bytes of all of them."""
    try:
        return sum(_write_sample(plan, index) for index in indices)
    except OSError as error:
        raise ConvoyError(f"Can't write the cache: {error}. Finished samples are kept.") from error


def _write_sample(plan: _Plan, index: int) -> int:
    # Imports torch, which processes that write raw data do not need.
    from convoy.synthetic.sample import build_sample, encode

    directory = plan.directory(index)
    paths = {builder: directory / f"{builder}.gz" for builder in BUILDERS}
    if not all(path.is_file() for path in paths.values()):
        directory.mkdir(parents=True, exist_ok=True)
        sample = build_sample(index, index % plan.logs, plan.seed)
        for builder, path in paths.items():
            # Renamed when whole: a file with its final name is never half written.
            temporary = path.with_suffix(".gz.tmp")
            temporary.write_bytes(encode(sample[builder]))
            temporary.replace(path)
    return sum(path.stat().st_size for path in paths.values())
