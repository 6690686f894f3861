"""Checks packed shards against their manifest: sizes, checksums, files that nobody knows. Standard
library only."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from convoy.data.shard import RECORDS_AT, Shard, header_of
from convoy.data.shards import SHARDS, SUFFIX, Manifest, shard_path

CHUNK = 8 << 20  # bytes per read


@dataclass(frozen=True)
class Damage:
    path: Path
    problem: str


class Checksum:
    """Of a shard's file, fed from its beginning in pieces of any size."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._header = b""
        self._records = hashlib.sha256()

    def update(self, piece: memoryview) -> None:
        lacking = RECORDS_AT - len(self._header)
        if lacking:
            self._header += bytes(piece[:lacking])
        self._records.update(piece[lacking:])

    def is_right(self) -> bool:
        return (
            self._header == header_of(self._shard)
            and self._records.hexdigest() == self._shard.sha256
        )


def verify(
    root: Path, manifest: Manifest, progress: Callable[[int], None] = lambda _: None
) -> list[Damage]:
    """Read every shard; `progress` is called with the number of bytes just read, from any thread.

    Hashing holds no interpreter lock, so there is a thread for each core.
    """
    shards = [shard for shard in manifest.shards if shard.tokens]

    def check(shard: Shard) -> Damage | None:
        path = shard_path(root, shard.name)
        problem = _problem(path, shard, progress)
        return None if problem is None else Damage(path, problem)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [damage for damage in pool.map(check, shards) if damage]


def unknown_files(root: Path, manifest: Manifest) -> list[Path]:
    """Files among the shards that the manifest does not name; a killed preparation leaves such."""
    known = {f"{shard.name}{suffix}" for shard in manifest.shards for suffix in (SUFFIX, ".json")}
    return sorted(path for path in (root / SHARDS).iterdir() if path.name not in known)


def _problem(path: Path, shard: Shard, progress: Callable[[int], None]) -> str | None:
    checksum = Checksum(shard)
    buffer = memoryview(bytearray(CHUNK))
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"it has {size} bytes, the manifest says {shard.bytes}"
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                checksum.update(buffer[:count])
                progress(count)
    except OSError as error:
        return error.strerror or str(error)
    return None if checksum.is_right() else "its checksum is not that of the manifest"
