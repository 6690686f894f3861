"""What a training reads from: a gzip cache or packed shards, by what is in the directory."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from convoy.data import cache
from convoy.data.cache import Builders
from convoy.data.shard_split import ShardSplit, damaged_shards, require_builders, split_of
from convoy.data.shards import is_shard_directory, load_manifest
from convoy.errors import ConvoyError

logger = logging.getLogger("convoy")

Split = cache.CacheSplit | ShardSplit


class CacheSource:
    """NAVSIM's feature cache."""

    def __init__(self, root: Path, config: DictConfig) -> None:
        self._root, self._skip_bad = root, config.data.skip_bad
        if config.data.stage is not None:
            raise ConvoyError(
                f"data.stage={config.data.stage} stages packed shards, and {root} is a gzip cache. "
                f"Pack it first: convoy prepare DIR --from-cache {root}"
            )

    def logs(self) -> list[str]:
        return cache.logs_in(self._root)

    def split(self, name: str, logs: Sequence[str], builders: Builders) -> cache.CacheSplit:
        """The usable samples of `logs`. Raises ConvoyError without any, or for incomplete ones
        without skip_bad."""
        found = cache.scan(self._root, logs, builders)
        cache.require_complete(found, self._root, name, self._skip_bad)
        if found.total > len(found.samples):
            logger.info(
                "%s: %d of %d tokens left out, they lack a file",
                name,
                found.total - len(found.samples),
                found.total,
            )
        return cache.CacheSplit(self._root, found.samples)


class ShardSource:
    """A directory of packed shards; one file, the manifest, says what is there."""

    def __init__(self, root: Path, config: DictConfig) -> None:
        self._root, self._skip_bad = root, config.data.skip_bad
        self._manifest = load_manifest(root)
        failures = len(self._manifest.failures)
        if failures:
            logger.info(
                "%s was prepared without %d samples that failed: convoy data info %s",
                root,
                failures,
                root,
            )

    def logs(self) -> list[str]:
        return list(self._manifest.logs)

    def split(self, name: str, logs: Sequence[str], builders: Builders) -> ShardSplit:
        """The samples of `logs`. Raises ConvoyError without any, or for damaged shards without
        skip_bad."""
        require_builders(self._manifest, self._root, builders)
        split = split_of(self._manifest, self._root, logs)
        damaged = damaged_shards(split)
        first = next(iter(damaged.values()), None)
        if damaged and not self._skip_bad:
            raise ConvoyError(
                f"{len(damaged)} of the {name} split's {len(split.shards)} shards are damaged, the "
                f"first: {first}. Delete their .json and run the same `convoy prepare` again, or "
                "train without: data.skip_bad=true."
            )
        if damaged:
            logger.info("%s: %d damaged shards left out, the first: %s", name, len(damaged), first)
            split = split.without(damaged)
        if not split.samples:
            raise ConvoyError(
                f"The shards {self._root} have no {name} sample: none of the {len(logs)} {name} "
                "logs is in them. `convoy data ls` lists what is."
            )
        return split


def open_source(config: DictConfig) -> CacheSource | ShardSource:
    root = Path(config.cache_path).absolute()
    return ShardSource(root, config) if is_shard_directory(root) else CacheSource(root, config)
