"""What each node of a start leaves in the run directory: that it began, how its part ended, and
which of the others went away.

A node that began and did not end was killed or has gone. Standard library only.
"""

import contextlib
import json
import time
from dataclasses import asdict, dataclass

from convoy.run.append import append_line
from convoy.run.atomic import write_text
from convoy.run.layout import RunDirectory


@dataclass(frozen=True)
class NodeState:
    """`exit_code` is None until the node's part has ended, `signal` is what asked it to, and
    `problem` says why the node is unfit."""

    host: str
    began: float
    exit_code: int | None = None
    signal: str = ""
    problem: str = ""

    @property
    def is_silent(self) -> bool:
        """Whether it began and said nothing more."""
        return self.exit_code is None and not self.signal


def begin(run: RunDirectory, start: str, host: str) -> NodeState:
    """Leave the sign that this node takes part in a start."""
    state = NodeState(host, time.time())
    write(run, start, state)
    return state


def write(run: RunDirectory, start: str, state: NodeState) -> None:
    """Replace this node's sign. A full disk ends nothing here: the node then counts as gone."""
    with contextlib.suppress(OSError):
        write_text(run.node(start, state.host), json.dumps(asdict(state)) + "\n", durable=False)


def read(run: RunDirectory, start: str) -> dict[str, NodeState]:
    """The signs of a start, by host; those that cannot be read are left out."""
    found = {}
    for path in run.nodes(start).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            state = NodeState(**json.loads(path.read_text()))
            found[state.host] = state
    return found


def lose(run: RunDirectory, start: str, host: str) -> None:
    """Leave word that `host` went away. A full disk ends nothing here: SLURM is asked as well."""
    with contextlib.suppress(OSError):
        append_line(run.lost_nodes(start), host)


def lost(run: RunDirectory, start: str) -> tuple[str, ...]:
    """The hosts that went away, in the order in which the others noticed."""
    try:
        return tuple(dict.fromkeys(run.lost_nodes(start).read_text().split()))
    except OSError:
        return ()
