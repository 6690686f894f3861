"""`events.jsonl`: one line per thing that happened to a run, over all of its starts.

A line is a JSON object with `time` (seconds since 1970), `kind`, `host`, and the facts of that
event. Standard library only: the launch and host tools write and read it too.
"""

import contextlib
import json
import socket
import time
from typing import Any

from convoy.run.append import append_line
from convoy.run.layout import RunDirectory

# Kinds that the training writes: start, takeover, resume, checkpoint, checkpoint_failed, signal,
# stuck, memory, all_reduce, stop, failure, finish. The launch adds its own (requeue, lost_node and
# so on).


def record(run: RunDirectory, kind: str, **facts: Any) -> None:
    """Append one line. Never raises: a full disk must not end what it would have reported."""
    entry = {"time": round(time.time(), 3), "kind": kind, "host": socket.gethostname(), **facts}
    with contextlib.suppress(OSError):
        append_line(run.events, json.dumps(entry, default=str))


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
