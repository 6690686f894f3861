"""NAVSIM's feature cache: `<cache>/<log>/<token>/<builder>.gz`, each file a gzipped pickle of a
dict of tensors.

The format is that of `dump_feature_target_to_pickle` in navsim/planning/training/dataset.py. A
pickle can run code when it is read; only what a dict of tensors is made of is allowed, unless the
cache is declared trusted.
"""

import gzip
import io
import json
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from convoy.errors import ConvoyError

Sample = tuple[dict[str, Tensor], dict[str, Tensor]]

DEFLATE_AT_MOST = (
    1032  # times smaller than what was compressed; https://www.zlib.net/zlib_tech.html
)
SCAN_THREADS = 16  # a parallel file system answers many small requests at once, each of them slowly
UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    pickle.UnpicklingError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what a damaged or foreign pickle is known to raise


@dataclass(frozen=True)
class Builders:
    """Names of the builders whose files make a sample; `<name>.gz` each."""

    features: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.features + self.targets


@dataclass(frozen=True)
class Split:
    """Samples of one split, as `<log>/<token>`, sorted: the same order on every machine."""

    root: Path
    samples: tuple[str, ...]

    @property
    def logs(self) -> tuple[str, ...]:
        return tuple(sorted({sample.partition("/")[0] for sample in self.samples}))


@dataclass(frozen=True)
class Scan:
    """Result of walking a cache: the usable samples, and how many lack which builder's file."""

    samples: tuple[str, ...]
    lacking: dict[str, int]
    total: int


def logs_in(cache: Path) -> list[str]:
    """Names of the logs in a cache, sorted."""
    with os.scandir(cache) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def scan(cache: Path, logs: Sequence[str], builders: Builders) -> Scan:
    """List the tokens of `logs`, one directory read per token. Logs that the cache does not hold
    are left out."""
    present = sorted(set(logs) & set(logs_in(cache)))
    wanted = {f"{name}.gz" for name in builders.names}

    def scan_log(log: str) -> list[tuple[str, set[str]]]:
        found = []
        with os.scandir(cache / log) as tokens:
            for token in tokens:
                if token.is_dir():
                    found.append((f"{log}/{token.name}", wanted - set(os.listdir(token.path))))
        return found

    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        tokens = sorted(token for log in pool.map(scan_log, present) for token in log)
    lacking = Counter(name.removesuffix(".gz") for _, missing in tokens for name in missing)
    return Scan(
        tuple(sample for sample, missing in tokens if not missing), dict(lacking), len(tokens)
    )


def require_complete(scan: Scan, cache: Path, split: str, skip_bad: bool) -> None:
    """Refuse a scan without usable samples, or (unless `skip_bad`) with samples that lack a
    builder's file."""
    lacks = "; ".join(
        f"builder {name!r}: {count} of {scan.total} tokens lack {name}.gz"
        for name, count in sorted(scan.lacking.items())
    )
    if not scan.samples:
        what = lacks or f"none of the {split} logs is in it"
        raise ConvoyError(
            f"The cache {cache} has no {split} sample for this agent: {what}. Build it with the "
            "agent's own builders (NAVSIM's run_dataset_caching.py), or choose logs that it holds."
        )
    if lacks and not skip_bad:
        raise ConvoyError(
            f"The cache {cache} is incomplete for this agent ({split}): {lacks}. "
            "Build the rest, or leave those tokens out with data.skip_bad=true."
        )


def read(path: Path, trusted: bool = False) -> dict[str, Tensor]:
    """Read one builder's file. Raises ConvoyError, naming the file, when it is truncated or no dict
    of tensors.

    Unless it is `trusted`, anything else that the pickle asks for is refused before it runs.
    """
    try:
        stored = _decompress(path.read_bytes())
        content = pickle.loads(stored) if trusted else _TensorUnpickler(io.BytesIO(stored)).load()
    except _Refused as error:
        raise ConvoyError(
            f"{path} asks for {error} when it is read, which dicts of tensors do not need and "
            "which can run any code: refused. If you know who made this cache, declare it "
            "trusted: data.trust_cache=true."
        ) from error
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConvoyError(
            f"{path} cannot be read ({reason}). Delete its folder and build it again, or train "
            "without such samples: data.skip_bad=true."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ConvoyError(
            f"{path} holds {type(content).__name__}, not a dict of tensors: NAVSIM's builders did "
            "not write it. Delete it, or train without such samples: data.skip_bad=true."
        )
    return content


def _decompress(content: bytes) -> bytes:
    """As gzip.decompress, with the room for the result made at once: a tenth faster."""
    size = int.from_bytes(content[-4:], "little")
    room = min(size, DEFLATE_AT_MOST * len(content))  # a truncated file ends on any number
    stored = zlib.decompress(content, wbits=31, bufsize=max(1, room))
    return (
        stored if len(stored) == size else gzip.decompress(content)
    )  # several members, or over 4 GiB


class _Refused(Exception):
    """The name of what a pickle asks for."""


class _TensorUnpickler(pickle.Unpickler):
    """Loads what pickled tensors are made of, and nothing else."""

    _ALLOWED = {
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("collections", "OrderedDict"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise _Refused(f"{module}.{name}")


def _load_storage(content: bytes) -> Any:
    """As torch.storage._load_from_bytes, which would unpickle anything."""
    try:
        return torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            raise _Refused("a storage that is none") from error
        raise


class CacheDataset(Dataset[Sample | ConvoyError]):
    """Samples of a split by index, each a pair of dicts (features, targets) as NAVSIM's own
    datasets give.

    An unreadable sample is returned as the ConvoyError that names its file (an exception raised in
    a worker process would reach the user as a traceback). With `skipped_log` set it is noted in
    that file and replaced by the next readable sample of the split, so that the batches keep their
    size and order.
    """

    def __init__(
        self,
        split: Split,
        builders: Builders,
        skipped_log: Path | None = None,
        trusted: bool = False,
    ) -> None:
        self.split = split
        self.builders = builders
        self.skipped_log = skipped_log
        self.trusted = trusted

    @property
    def tokens(self) -> list[str]:
        """Without the logs' names, as NAVSIM's datasets have them."""
        return [sample.rpartition("/")[2] for sample in self.split.samples]

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> Sample | ConvoyError:
        for step in range(len(self)):
            sample = self.split.samples[(index + step) % len(self)]
            try:
                return self._read(sample)
            except ConvoyError as error:
                if self.skipped_log is None:
                    return error
                with self.skipped_log.open("a") as file:
                    file.write(json.dumps({"sample": sample, "reason": str(error)}) + "\n")
        return ConvoyError(f"No sample of {self.split.root} can be read; see {self.skipped_log}.")

    def _read(self, sample: str) -> Sample:
        folder = self.split.root / sample
        features: dict[str, Tensor] = {}
        targets: dict[str, Tensor] = {}
        for names, tensors in (
            (self.builders.features, features),
            (self.builders.targets, targets),
        ):
            for name in names:
                tensors.update(read(folder / f"{name}.gz", self.trusted))
        return features, targets


def collate(samples: list[Sample | ConvoyError]) -> Sample | ConvoyError:
    """Stack samples along a new dimension 0; the first unreadable one stands for the whole
    batch."""
    unreadable = next((sample for sample in samples if isinstance(sample, ConvoyError)), None)
    return unreadable if unreadable is not None else default_collate(samples)


def skipped_samples(skipped_log: Path) -> set[str]:
    """Samples noted in `skipped_log` by any rank or worker."""
    if not skipped_log.is_file():
        return set()
    return {json.loads(line)["sample"] for line in skipped_log.read_text().splitlines()}
