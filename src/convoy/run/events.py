"""`events.jsonl`: one line per thing that happened to a run, over all of its starts.

A line is a JSON object with `time` (seconds since 1970), `kind`, `host`, and the facts of that
event. Standard library only: the launch and host tools write and read it too.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from typing import Any

from convoy.run.layout import RunDirectory

# Kinds that the training writes: start, takeover, resume, checkpoint, checkpoint_failed, signal,
# stuck, memory, all_reduce, stop, failure, finish. The launch adds its own (requeue, lost_node and
# so on).


def record(run: RunDirectory, kind: str, **facts: Any) -> None:
    """Append one line. Never raises: a full disk must not end what it would have reported."""
    entry = {"time": round(time.time(), 3), "kind": kind, "host": socket.gethostname(), **facts}
    line = json.dumps(entry, default=str) + "\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(run.events, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # NFS has no atomic append: without the lock, two nodes could write at one offset.
            with contextlib.suppress(OSError):
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = "\n" + line  # the line before was cut by a full disk
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(run: RunDirectory) -> list[dict[str, Any]]:
    """All events in order; lines that were cut are left out."""
    try:
        lines = run.events.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "kind" in entry:
                found.append(entry)
    return found
