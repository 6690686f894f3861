"""A cluster described by a file, for planning without one at hand: TOML by hand, JSON by a program.

docs/plan.md shows the format. Node lists are SLURM's (`gl[001,006-016]`); times are SLURM's too, or
seconds in a JSON file.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.host.cluster import hosts
from convoy.host.cluster_model import Cluster, Job, Limits, Node, Partition
from convoy.host.job_file import seconds

TABLES = {
    "partition": ("name", "limit", "max_nodes", "min_nodes", "accounts", "wait", "up", "default"),
    "nodes": (
        "names",
        "partitions",
        "gpu",
        "gpus",
        "gpus_used",
        "cpus",
        "memory_gib",
        "state",
        "reason",
    ),
    "job": (
        "id",
        "user",
        "account",
        "partition",
        "state",
        "reason",
        "nodes",
        "gpus",
        "limit",
        "left",
        "priority",
        "count",
    ),
    "limits": ("accounts", "qos_wall", "qos_gpus_per_user"),
    "run": ("agent", "gpu", "nodes", "gpus", "global_batch", "samples_per_s", "data", "note"),
}
SINGLE = ("now", "user")


def load(path: Path) -> tuple[Cluster, list[Mapping[str, Any]]]:
    """The cluster, and the earlier runs (`run` tables) that the file lists. Raises ConvoyError."""
    try:
        with path.open("rb") as file:
            content = json.load(file) if path.suffix == ".json" else tomllib.load(file)
    except OSError as error:
        raise ConvoyError(f"--cluster {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # both decoders' own errors
        raise ConvoyError(
            f"--cluster {path} is not valid {path.suffix[1:] or 'TOML'}: {error}"
        ) from error
    try:
        return _cluster(content, path), list(content.get("run", []))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ConvoyError(f"--cluster {path}: {what}. docs/plan.md shows the format.") from error


def _cluster(content: Mapping[str, Any], path: Path) -> Cluster:
    for name, table in content.items():
        if name in SINGLE:
            continue
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r} (known: {', '.join([*TABLES, *SINGLE])})")
        known = frozenset(TABLES[name])
        for entry in table if isinstance(table, list) else [table]:
            unknown = sorted(entry.keys() - known)
            if unknown:
                raise ValueError(f"{name} has no {unknown[0]!r} (known: {', '.join(TABLES[name])})")
    now = content.get("now") or datetime.now()
    partitions = [_partition(entry) for entry in content["partition"]]
    nodes = tuple(node for entry in content["nodes"] for node in _nodes(entry))
    named = {partition.name for partition in partitions}
    for node in nodes:
        for name in set(node.partitions) - named:
            raise ValueError(
                f"node {node.name} is in partition {name!r}, which the file does not list"
            )
    limits = content.get("limits")
    return Cluster(
        now if isinstance(now, datetime) else datetime.fromisoformat(str(now)),
        nodes,
        {partition.name: partition for partition in partitions},
        tuple(job for entry in content.get("job", ()) for job in _jobs(entry)),
        None
        if limits is None
        else Limits(
            {name: tuple(qos) for name, qos in limits.get("accounts", {}).items()},
            {name: _time(text) or 0 for name, text in limits.get("qos_wall", {}).items()},
            limits.get("qos_gpus_per_user", {}),
        ),
        content.get("user", ""),
        str(path),
    )


def _partition(entry: Mapping[str, Any]) -> Partition:
    wait = entry.get("wait")
    return Partition(
        entry["name"],
        entry.get("up", True),
        _time(entry.get("limit", "UNLIMITED")),
        entry.get("max_nodes"),
        entry.get("min_nodes", 0),
        tuple(entry["accounts"]) if "accounts" in entry else None,
        is_default=entry.get("default", False),
        wait=None if wait is None else float(_time(wait) or 0),
    )


def _nodes(entry: Mapping[str, Any]) -> Iterator[Node]:
    state = str(entry.get("state", "idle")).upper()
    for name in hosts(entry["names"]):
        yield Node(
            name,
            tuple(entry["partitions"]),
            entry.get("gpu", "gpu"),
            int(entry["gpus"]),
            int(entry.get("gpus_used", 0 if state == "IDLE" else entry["gpus"])),
            int(entry.get("cpus", 0)),
            int(entry.get("memory_gib", 0)) * 1024,
            state,
            state in {"IDLE", "MIXED", "ALLOCATED"},
            entry.get("reason", ""),
        )


def _jobs(entry: Mapping[str, Any]) -> Iterator[Job]:
    limit = _time(entry.get("limit", "UNLIMITED"))
    job = Job(
        str(entry.get("id", "")),
        entry.get("user", ""),
        entry.get("account", ""),
        tuple(entry["partition"].split(",")),
        str(entry.get("state", "pending")).upper(),
        entry.get("reason", "Priority"),
        int(entry.get("nodes", 1)),
        entry.get("gpus"),
        limit,
        _time(entry["left"]) if "left" in entry else limit,
        None,
        int(entry.get("priority", 1)),
    )
    for _ in range(int(entry.get("count", 1))):
        yield job


def _time(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else seconds(str(value))
