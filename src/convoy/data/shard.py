"""One shard, and what the builders of its values were. Standard library only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convoy.data.layout import Layout

RECORDS_AT = 256  # bytes of a shard's header: where its first record begins


@dataclass(frozen=True)
class Failure:
    """A sample that was left out, and why. `token` is `*` for all of a log."""

    log: str
    token: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """Entry of one shard file.

    `bytes` is the file's size; `sha256` is that of its records, which begin at `RECORDS_AT`.
    `offsets` in the file, one more than there are samples, is None where records are equally long.
    """

    log: str
    part: int
    layout: Layout
    tokens: tuple[str, ...]
    bytes: int
    sha256: str
    offsets: tuple[int, ...] | None = None
    failures: tuple[Failure, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return shard_name(self.log, self.part)

    def span(self, row: int) -> tuple[int, int]:
        """Where a record begins and ends in the file."""
        if self.offsets is not None:
            return self.offsets[row], self.offsets[row + 1]
        length = self.layout.record_bytes or 0
        return RECORDS_AT + row * length, RECORDS_AT + (row + 1) * length


def header_of(shard: Shard) -> bytes:
    """What the file of a shard begins with."""
    size = shard.bytes - RECORDS_AT
    shape = [len(shard.tokens), size // len(shard.tokens)] if shard.offsets is None else [size]
    tensors = {"records": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(tensors, separators=(",", ":")).encode().ljust(RECORDS_AT - 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Builder:
    """A builder whose tensors are in the shards, and how it was made; `config` is None where that
    is not known."""

    name: str
    role: str | None  # "feature" or "target"; None when packed from a cache without naming an agent
    cls: str | None = None
    config: Any = None


def shard_name(log: str, part: int) -> str:
    return f"{log}-{part:03d}"
