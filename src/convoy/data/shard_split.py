"""The samples of a split in packed shards, and where each of them lies."""

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convoy.data.cache import Builders
from convoy.data.shard import Shard
from convoy.data.shards import Manifest, shard_path
from convoy.errors import ConvoyError


@dataclass(frozen=True)
class ShardSplit:
    """Samples of one split as `<log>/<token>`, sorted (the order of a gzip cache's), and where each
    of them is."""

    root: Path
    shards: tuple[Shard, ...]
    samples: tuple[str, ...]
    shard_of: np.ndarray  # int32 (samples,), index into `shards`
    row_of: np.ndarray  # int32 (samples,), record within the shard

    @property
    def logs(self) -> tuple[str, ...]:
        return tuple(sorted({shard.log for shard in self.shards}))

    def without(self, names: Container[str]) -> "ShardSplit":
        """The split less the samples of the shards of those names."""
        kept = np.array([shard.name not in names for shard in self.shards])[self.shard_of]
        samples = tuple(
            sample for sample, keep in zip(self.samples, kept.tolist(), strict=True) if keep
        )
        return replace(
            self, samples=samples, shard_of=self.shard_of[kept], row_of=self.row_of[kept]
        )


def split_of(manifest: Manifest, root: Path, logs: Sequence[str]) -> ShardSplit:
    """The samples of `logs`; logs that the shards do not hold are left out."""
    wanted = set(logs)
    shards = tuple(shard for shard in manifest.shards if shard.log in wanted and shard.tokens)
    names = [f"{shard.log}/{token}" for shard in shards for token in shard.tokens]
    counts = [len(shard.tokens) for shard in shards]
    shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    row_of = np.concatenate(
        [np.arange(count, dtype=np.int32) for count in counts] or [np.zeros(0, np.int32)]
    )
    order = sorted(range(len(names)), key=names.__getitem__)
    return ShardSplit(root, shards, tuple(names[i] for i in order), shard_of[order], row_of[order])


def require_builders(manifest: Manifest, root: Path, builders: Builders) -> None:
    """Refuse shards without the tensors of one of `builders`."""
    held = {builder.name for builder in manifest.builders}
    lacking = [name for name in builders.names if name not in held]
    if lacking:
        raise ConvoyError(
            f"The shards {root} hold nothing of the builder(s) {', '.join(lacking)}; they were "
            f"prepared with {', '.join(sorted(held))}. Prepare them with this agent: convoy "
            "prepare DIR agent=…"
        )


def damaged_shards(split: ShardSplit) -> dict[str, str]:
    """Names of the shards whose file is not there or not as long as the manifest says, and what it
    is; a stat each."""

    def check(shard: Shard) -> str | None:
        path = shard_path(split.root, shard.name)
        try:
            size = path.stat().st_size
        except OSError as error:
            return f"{path}: {error.strerror}"
        return (
            None
            if size == shard.bytes
            else f"{path} has {size} bytes, the manifest says {shard.bytes}"
        )

    with ThreadPoolExecutor(16) as pool:
        found = zip(split.shards, pool.map(check, split.shards), strict=True)
        return {shard.name: problem for shard, problem in found if problem}
