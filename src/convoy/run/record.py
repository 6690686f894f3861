"""The record of a run's starts: one line of `launches.jsonl` for each, whatever started it."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.run.atomic import NO_ROOM
from convoy.run.image import read_manifest
from convoy.run.layout import RunDirectory
from convoy.topology import Launch

CHECKOUT = Path(__file__).parents[3]
LEAST_ROOM = 1 << 20  # bytes: a start's own logs


@dataclass(frozen=True)
class Software:
    """What a start runs, read where it runs. Outside of an image `image`, `lock` are None."""

    image: str | None  # digest of the image's content
    lock: str | None  # digest of the locked requirements
    convoy: str | None  # commit, with -edited where files differ from it
    navsim: str | None

    @classmethod
    def here(cls, navsim_commit: str | None) -> "Software":
        """`navsim_commit` is that of the tree in use, None where it has no git folder."""
        manifest = read_manifest()
        if manifest is None:
            return cls(None, None, commit_of(CHECKOUT), navsim_commit)
        baked_in = not os.path.ismount("/opt/navsim")
        return cls(
            manifest["digest"],
            manifest["lock"],
            manifest["commit"],
            navsim_commit or (manifest["sources"]["navsim"] if baked_in else None),
        )


def record_start(
    run: RunDirectory,
    launch: Launch,
    software: Software,
    overrides: Sequence[str],
    changed: Sequence[str] = (),
) -> list[str]:
    """Add this start to the run's record. Returns what a person should know, a sentence each.

    `changed` names files of the launch that are newer than the job's submission. Raises ConvoyError
    where the run directory cannot be written.
    """
    notes = [
        f"{path} was changed after the job was submitted; this start uses it." for path in changed
    ]
    before = last_start(run)
    if before is not None and before.get("software") != asdict(software):
        parts = [
            f"{name} {before['software'].get(name)} before, {value} now"
            for name, value in asdict(software).items()
            if before["software"].get(name) != value
        ]
        notes.append(f"This run continues with other software: {'; '.join(parts)}.")
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "start": launch.start,
        "kind": launch.kind,
        "job": launch.job,
        "nodes": list(launch.hosts),
        "processes_per_node": launch.processes,
        "software": asdict(software),
        "changed_since_submission": list(changed),
        "overrides": list(overrides),
    }
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        _require_room(run)
        with run.launches.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise ConvoyError(
                f"The run directory {run.root} has no room for the logs of a start "
                f"({error.strerror}). Free some, or give another: run_dir=/path."
            ) from error
        raise ConvoyError(
            f"The run directory {run.root} cannot be written: {error.strerror}. Give another "
            "(run_dir=/path), or another NAVSIM_EXP_ROOT; its file system must be in CONVOY_BIND."
        ) from error
    return notes


def _require_room(run: RunDirectory) -> None:
    """Raise OSError where LEAST_ROOM cannot be written: a quota may end before the disk does."""
    probe = run.logs / f".room-{os.uname().nodename}-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(LEAST_ROOM))
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def last_start(run: RunDirectory, name: str | None = None) -> dict[str, Any] | None:
    """The last whole line of the record with the fields of today, or None; with `name`, that of the
    start of this name: another one may have been refused meanwhile."""
    try:
        lines = run.launches.read_text().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("software"), dict):
            continue
        if name is None or entry.get("start") == name:
            return entry
    return None


def commit_of(tree: Path, *paths: str) -> str | None:
    """Commit of a git checkout, with `-edited` where `paths` (all files) differ from it; None for a
    tree without git's folder."""
    if not (tree / ".git").exists():
        return None
    git = ["git", "-c", f"safe.directory={tree}", "-C", str(tree)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        edited = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", *paths], capture_output=True
        ).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-edited" if edited else head
