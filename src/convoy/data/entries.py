"""A shard's entry as JSON, and whether what is read there can be true. Standard library only.

Whoever can write a manifest can say anything in it: names that lead out of the directory, numbers
that contradict each other. A checksum of its own covers how the records of a shard are laid out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from convoy.data.layout import Layout
from convoy.data.shard import Builder, Failure, Shard

LONGEST_NAME = 200  # of a log; a file name of 255 bytes has to hold more than that


def require_name(name: Any, what: str) -> str:
    """A log's or token's name. Raises ValueError for one that is not a plain file name."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r:.80} is not the name of a {what}")
    odd = "/" in name or name in (".", "..") or not name.isprintable() or name != name.strip()
    if odd or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        raise ValueError(
            f"{name!r:.80} is not the name of a {what}: expected a plain file name of at most "
            f"{LONGEST_NAME} bytes"
        )
    return name


def in_one_line(text: str) -> str:
    """Without line breaks, control characters and what no terminal or file can show."""
    return "".join(character if character.isprintable() else " " for character in text)


def shard_to_json(shard: Shard) -> dict[str, Any]:
    """All but the layout itself."""
    content = asdict(shard)
    del content["layout"]
    return content | {"layout_sha256": shard.layout.sha256}


def shard_from_json(content: Any, layout: Layout) -> Shard:
    """Raises ValueError, TypeError or KeyError for what cannot be true."""
    tokens = content["tokens"]
    if not isinstance(tokens, list):
        raise TypeError("tokens is not a list")
    name = require_name(content["log"], "log")
    # Written by this version on; what an older one wrote has no such key.
    if content.get("layout_sha256", layout.sha256) != layout.sha256:
        raise ValueError(f"the layout of log {name} is not the one that its shard was written with")
    offsets = content["offsets"]
    shard = Shard(
        log=name,
        part=_whole(content["part"], "part"),
        layout=layout,
        tokens=tuple(require_name(token, "token") for token in tokens),
        bytes=_whole(content["bytes"], "bytes"),
        sha256=_text(content["sha256"]),
        offsets=None if offsets is None else tuple(_whole(offset, "offset") for offset in offsets),
        failures=tuple(map(_failure, content["failures"])),
        seconds=_seconds(content["seconds"]),
    )
    _require_consistent(shard)
    return shard


def builder_from_json(content: Any) -> Builder:
    builder = Builder(**content)
    for value in (builder.role, builder.cls):
        if value is not None:
            _text(value)
    return Builder(_text(builder.name), builder.role, builder.cls, builder.config)


def origin_from_json(content: Any) -> dict[str, Any]:
    return {_text(key): value for key, value in content.items()}


def require_one_of_each(shards: Sequence[Shard]) -> None:
    """Raises ValueError for a shard that is there twice."""
    names = [shard.name for shard in shards]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the shard {twice} is there twice")


def _require_consistent(shard: Shard) -> None:
    offsets, tokens = shard.offsets, shard.tokens
    if tokens and (shard.layout.record_bytes is None) != (offsets is not None):
        raise ValueError(f"offsets of shard {shard.name} do not fit its layout")
    if offsets is not None and not _ascending(offsets, len(tokens)):
        raise ValueError(f"offsets of shard {shard.name} are not those of {len(tokens)} samples")
    expected = shard.span(len(tokens) - 1)[1] if tokens else 0
    if shard.bytes != expected:
        raise ValueError(f"shard {shard.name} has {shard.bytes} bytes, its records {expected}")


def _ascending(offsets: Sequence[int], count: int) -> bool:
    return len(offsets) == count + 1 and list(offsets) == sorted(offsets)


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{what} is {value!r:.80}, not a whole number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a text")
    return in_one_line(value)


def _failure(content: Any) -> Failure:
    return Failure(**{key: _text(value) for key, value in content.items()})


def _seconds(content: Any) -> Mapping[str, float]:
    return {_text(kind): float(value) for kind, value in content.items()}
