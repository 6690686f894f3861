"""NAVSIM's feature cache: `<cache>/<log>/<token>/<builder>.gz`, each file a gzipped pickle of what
the builder gave.

The format is that of `dump_feature_target_to_pickle` in navsim/planning/training/dataset.py. A
pickle can run code when it is read; only what values are made of is allowed, unless the cache is
declared trusted.
"""

import errno
import gzip
import json
import os
import pickle
import stat
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, default_collate

from convoy.agents.contract import TrainableAgent
from convoy.data import pickles
from convoy.errors import ConvoyError
from convoy.run.append import append_line

Sample = tuple[dict[Any, Any], dict[Any, Any]]

SCAN_THREADS = 16  # a parallel file system answers many small requests at once, each of them slowly
# What a damaged or foreign pickle is known to raise.
UNREADABLE = (
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
    OSError,
)


@dataclass(frozen=True)
class Builders:
    """Names of the builders whose files make a sample; `<name>.gz` each."""

    features: tuple[str, ...]
    targets: tuple[str, ...]

    @classmethod
    def of(cls, agent: TrainableAgent) -> "Builders":
        """Those of an agent. Raises NotImplementedError for one that has none (NAVSIM's rule-based
        agents)."""
        return cls(
            tuple(builder.get_unique_name() for builder in agent.get_feature_builders()),
            tuple(builder.get_unique_name() for builder in agent.get_target_builders()),
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.features + self.targets


@dataclass(frozen=True)
class CacheSplit:
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


def read(path: Path, trusted: bool = False) -> dict[Any, Any]:
    """Read one builder's file: a dict of whatever a batch can be made of.

    Unless it is `trusted`, what the pickle asks for besides is refused before it runs. Raises
    ConvoyError, naming the file, when it cannot be read, is damaged, refused, or no dict.
    """
    content = _load(path, trusted)
    if not isinstance(content, dict):
        raise ConvoyError(
            f"{path} holds a {type(content).__name__}, not a dict: NAVSIM cannot train from it "
            "either. Let its builder return a dict, or leave such samples out: data.skip_bad=true."
        )
    return content


def _load(path: Path, trusted: bool) -> Any:
    try:
        compressed = _read_file(path)
    except OSError as error:
        raise ConvoyError(
            f"{path} cannot be read ({error.strerror}). Is the file system mounted, and may you "
            "read it? To leave such samples out: data.skip_bad=true."
        ) from error
    try:
        if trusted:
            return pickle.loads(gzip.decompress(compressed))
        return pickles.load(pickles.decompress(compressed))
    except pickles.TooLarge:
        raise ConvoyError(
            f"{path} ({len(compressed)} bytes) would unpack to more than "
            f"{pickles.MOST_BYTES >> 30} GiB: refused. If a sample of your builder's is really so "
            "large, data.trust_cache=true reads it."
        ) from None
    except pickles.Malicious as error:
        raise ConvoyError(
            f"{path} is a malicious pickle: whoever reads it calls {error}. It was refused, and "
            "nothing of it ran. No builder writes this: find out who can write to "
            f"{path.parent}, and read it with nothing else."
        ) from None
    except pickles.UnknownClass as error:
        raise ConvoyError(
            f"{path} asks for {error} when it is read: refused, since that could run any code. "
            "Batches are made of tensors, arrays, numbers, strings, dicts, lists and tuples. Where "
            "it is a kind of these that the agent's own builder made, data.trust_cache=true reads "
            "it."
        ) from None
    except pickles.Refused as error:
        raise ConvoyError(
            f"{path} holds {error}, which no batch can be made of. Let the agent's builder return "
            "tensors (dense ones), arrays, numbers or strings, or leave such samples out: "
            "data.skip_bad=true."
        ) from None
    except MemoryError:
        raise ConvoyError(
            f"{path} ({len(compressed)} bytes) asks for more memory than there is. Where all "
            "samples are so large, use fewer workers; else the file is damaged: data.skip_bad=true "
            "leaves it out."
        ) from None
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise ConvoyError(
            f"{path} is damaged ({reason}). Delete its folder and build that sample again, or "
            "train without such samples: data.skip_bad=true."
        ) from error


def _read_file(path: Path) -> bytes:
    """What is compressed never grows by it: a file that is too large already is not read at all."""
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISCHR(found.st_mode):
            raise OSError(errno.EINVAL, "it is a device, not a file")
        if found.st_size > pickles.MOST_BYTES:
            raise OSError(errno.EFBIG, f"{found.st_size} bytes are more than a sample has")
        return file.readall()


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
        split: CacheSplit,
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
                append_line(self.skipped_log, json.dumps({"sample": sample, "reason": str(error)}))
        return ConvoyError(f"No sample of {self.split.root} can be read; see {self.skipped_log}.")

    def _read(self, sample: str) -> Sample:
        folder = self.split.root / sample
        features: dict[Any, Any] = {}
        targets: dict[Any, Any] = {}
        for names, values in (
            (self.builders.features, features),
            (self.builders.targets, targets),
        ):
            for name in names:
                values.update(read(folder / f"{name}.gz", self.trusted))
        return features, targets


def collate(samples: list[Sample | ConvoyError]) -> Sample | ConvoyError:
    """NAVSIM's `default_collate`; the first unreadable sample stands for the whole batch, and so
    does the reason why no batch can be made of them."""
    read = [sample for sample in samples if not isinstance(sample, ConvoyError)]
    if len(read) < len(samples):
        return next(sample for sample in samples if isinstance(sample, ConvoyError))
    try:
        return default_collate(read)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        return ConvoyError(f"No batch can be made of these samples: {_odd_one(read) or error}")


def _odd_one(samples: list[Sample]) -> str | None:
    """The first feature or target that does not go into a batch, and why."""
    for number, part in enumerate(("feature", "target")):
        for key in samples[0][number]:
            try:
                default_collate([sample[number][key] for sample in samples])
            except KeyError:
                return f"one of them lacks the {part} {key!r}, which the first one has."
            except (TypeError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0].removeprefix("default_collate: ")
                return (
                    f"the {part} {key!r} ({reason}). Let the agent's builder give every sample the "
                    "same shapes and kinds of value."
                )
    return None


def skipped_samples(skipped_log: Path) -> set[str]:
    """Samples noted in `skipped_log` by any rank or worker."""
    if not skipped_log.is_file():
        return set()
    return {json.loads(line)["sample"] for line in skipped_log.read_text().splitlines()}
