"""Packed shards on disk: the manifest and the layout of records. Standard library only, so that
host tools can use it.

    <dir>/manifest.json              what is in the data set; written last
    <dir>/shards/<log>-<part>.safetensors    records of samples of one log, one after another
    <dir>/shards/<log>-<part>.json           its entry of the manifest: the shard is whole

A shard is a safetensors file (https://github.com/huggingface/safetensors, "Format") with one uint8
tensor, `records`: (samples, bytes of a record), or (bytes,) where records differ in length. Its
header always takes 256 bytes.

A record holds a sample's tensors one after another, little-endian, without padding, in the order of
its layout's fields: so that one vectored read puts each of them where it belongs. Where the shape
of some differs between samples, a record begins with their dimensions (int64 each), and the shard's
entry lists the records' offsets.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.data import entries
from convoy.data.layout import Layout, layout_from_json, layout_to_json
from convoy.data.shard import Builder, Failure, Shard
from convoy.errors import ConvoyError

FORMAT = "convoy-shards"
VERSIONS = (1, 2)  # that can be read; a set is written in the oldest one that has its layouts
MANIFEST = "manifest.json"
SHARDS = "shards"
SUFFIX = ".safetensors"
DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds."""

    builders: tuple[Builder, ...]
    origin: Mapping[str, Any]  # source paths, agent, versions, NAVSIM's commit
    shards: tuple[Shard, ...]

    @property
    def logs(self) -> tuple[str, ...]:
        return tuple(sorted({shard.log for shard in self.shards}))

    @property
    def samples(self) -> int:
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(failure for shard in self.shards for failure in shard.failures)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The different layouts, the commonest first."""
        counts: dict[Layout, int] = {}
        for shard in self.shards:
            if shard.tokens:
                counts[shard.layout] = counts.get(shard.layout, 0) + len(shard.tokens)
        return tuple(sorted(counts, key=lambda layout: -counts[layout]))


def shard_path(root: Path, name: str) -> Path:
    return root / SHARDS / f"{name}{SUFFIX}"


def entry_path(root: Path, name: str) -> Path:
    return root / SHARDS / f"{name}.json"


def is_shard_directory(path: Path) -> bool:
    """Whether `path` holds packed shards, finished or not."""
    return (path / MANIFEST).exists() or (path / SHARDS).is_dir()


def load_manifest(root: Path) -> Manifest:
    """Read `<root>/manifest.json`.

    Raises ConvoyError when it is missing, damaged or of another version.
    """
    path = root / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        done = len(list((root / SHARDS).glob("*.json"))) if (root / SHARDS).is_dir() else 0
        reason = (
            f"its preparation was not finished ({done} shards are)"
            if done
            else "no packed shards are there"
        )
        raise ConvoyError(
            f"{path} is missing: {reason}. Run the same `convoy prepare` again."
        ) from None
    except DAMAGED as error:
        raise ConvoyError(
            f"{path} cannot be read ({_reason(error)}). Delete it and run the same `convoy "
            "prepare` again: it is made anew from the shards."
        ) from error
    return _parse(content, path)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `<root>/manifest.json` in one step; the same shards give the same bytes."""
    layouts = list(dict.fromkeys(shard.layout for shard in manifest.shards))
    number = {layout: index for index, layout in enumerate(layouts)}
    content = {
        "format": FORMAT,
        "version": max((layout.version for layout in layouts), default=1),
        "builders": [asdict(builder) for builder in manifest.builders],
        "origin": dict(manifest.origin),
        "layouts": [layout_to_json(layout) for layout in layouts],
        "shards": [
            {**entries.shard_to_json(shard), "layout": number[shard.layout]}
            for shard in manifest.shards
        ],
    }
    write_json(root / MANIFEST, content)


def write_entry(root: Path, shard: Shard) -> None:
    write_json(
        entry_path(root, shard.name),
        {
            "version": shard.layout.version,
            **entries.shard_to_json(shard),
            "layout": layout_to_json(shard.layout),
        },
    )


def read_entry(root: Path, name: str) -> Shard | None:
    """A finished shard's entry, or None where it is not finished.

    ConvoyError when it is damaged.
    """
    path = entry_path(root, name)
    try:
        content = json.loads(path.read_bytes())
        if content["version"] not in VERSIONS:
            raise _other_version(path, content["version"])
        shard = entries.shard_from_json(content, layout_from_json(content["layout"]))
        if shard.name != name:
            raise ValueError(f"it is the entry of {shard.name}")
        return shard
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        raise ConvoyError(
            f"{path} is damaged ({_reason(error)}). Delete it and run the same `convoy prepare` "
            "again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write beside `path` and rename, so that a file of that name is always whole."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            json.dump(content, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConvoyError(
            f"{path} could not be written: {error.strerror}. What was finished is kept."
        ) from error


def require_one_schema(shards: Sequence[Shard]) -> None:
    """Refuse shards whose tensors differ in more than how they are packed; ConvoyError names the
    first difference."""
    first: Shard | None = None
    for shard in shards:
        if not shard.tokens:
            continue
        first = first or shard
        if shard.layout is first.layout:
            continue
        ours, theirs = _schema(first.layout), _schema(shard.layout)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise ConvoyError(
                    f"The shards {first.name} and {shard.name} have different schemas: "
                    f"{'.'.join(key)} is {ours.get(key, 'absent')} in one and "
                    f"{theirs.get(key, 'absent')} in the other. Delete the wrong one's .json in "
                    "shards/, and prepare it again with the builders of the other."
                )


def require_unique_tokens(shards: Sequence[Shard]) -> None:
    """Refuse a token that occurs twice; ConvoyError names both places."""
    seen: dict[str, str] = {}
    for shard in shards:
        for token in shard.tokens:
            if token in seen:
                raise ConvoyError(
                    f"The token {token} is in two shards, {seen[token]} and {shard.name}: it would "
                    "train twice. Delete one of its sources and prepare into a new directory."
                )
            seen[token] = shard.name


def _schema(layout: Layout) -> dict[tuple[str, str], str]:
    # Shapes may differ between logs; a batch of differing shapes is refused by the loader.
    return {
        (entry.builder, entry.name): f"{entry.dtype} with {entry.ndim} dimension(s)"
        for entry in layout.fields
    }


def _parse(content: Any, path: Path) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConvoyError(
            f"{path} is not a manifest of packed shards (format {FORMAT!r} expected)."
        )
    if type(content.get("version")) is not int or content["version"] not in VERSIONS:
        raise _other_version(path, content.get("version"))
    try:
        layouts = [layout_from_json(layout) for layout in content["layouts"]]
        shards = tuple(
            entries.shard_from_json(entry, layouts[entry["layout"]]) for entry in content["shards"]
        )
        builders = tuple(map(entries.builder_from_json, content["builders"]))
        manifest = Manifest(builders, entries.origin_from_json(content["origin"]), shards)
        entries.require_one_of_each(shards)
    except DAMAGED as error:
        raise ConvoyError(
            f"{path} is damaged ({_reason(error)}). Delete it and run the same `convoy prepare` "
            "again: whole shards are kept."
        ) from error
    require_one_schema(manifest.shards)
    require_unique_tokens(manifest.shards)
    return manifest


def _other_version(path: Path, version: Any) -> ConvoyError:
    return ConvoyError(
        f"{path} is of version {version!r:.20}, and this Convoy reads versions up to "
        f"{max(VERSIONS)}. Use the Convoy that wrote it, or prepare the data again into a new "
        "directory."
    )


def _reason(error: BaseException) -> str:
    return f"{error}" if isinstance(error, ValueError) else repr(error)
