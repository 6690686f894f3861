"""The nodes of a job's start keep in touch: what each says of itself, and which of them went.

torchrun's agents do not notice a peer that is gone (pytorch#111646), and ranks wait for it until
their collective's timeout. So each node's launcher holds a connection to the first node's, and says
once a second that it is there. A process that was killed closes its connection at once; a node
without power or network is silent. The first node tells the others who went (convoy.launch.hub). If
it goes itself, all notice: the rendezvous is on it, so no start survives it anyway.

Standard library only.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.errors import ConvoyError, ExitCode
from convoy.launch import hub
from convoy.launch.hub import ARRIVAL, Hub


class LostNode(Exception):
    """Nodes, named by the arguments, did not come or went away before the ranks started."""


@dataclass(frozen=True)
class Gathering:
    """What each node said, by host; who did not come; and by how many seconds each one's clock is
    ahead of the first node's."""

    words: dict[str, Any]
    missing: tuple[str, ...]
    ahead: dict[str, float]


class Peers:
    """A node's connection to the others: `gather` once, then `follow` until `leave`."""

    def __init__(self, host: str, first: str, endpoint: tuple[str, int]) -> None:
        self._host, self._first, self._endpoint = host, first, endpoint
        self._connection: socket.socket | None = None
        self._rest = b""
        self._unread: list[dict[str, Any]] = []  # what came with or before the others' words
        self._out: set[str] = set()
        self._lock = threading.Lock()
        self._left = threading.Event()

    def gather(self, word: Any, patience: float = ARRIVAL) -> Gathering:
        """Say `word` (plain values) and learn what the others said.

        Raises LostNode, naming the first one, where that does not answer in time or goes meanwhile.
        """
        try:
            return self._gather(word, time.monotonic() + patience)
        except (OSError, ValueError) as error:
            raise LostNode(self._first) from error

    def _gather(self, word: Any, deadline: float) -> Gathering:
        while self._connection is None:
            try:
                self._connection = socket.create_connection(self._endpoint, timeout=hub.SILENCE)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self._connection.settimeout(hub.SILENCE)
        self._send({"host": self._host, "word": word})
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        gathering = None
        while gathering is None:
            for said in self._read():
                if "asked" in said:
                    self._send({"clock": time.time(), "asked": said["asked"]})
                elif "words" in said:
                    gathering = Gathering(said["words"], tuple(said["missing"]), said["ahead"])
                elif "gone" in said:
                    raise LostNode(said["gone"])
                else:
                    self._unread.append(said)
        return gathering

    def follow(
        self, gone: Callable[[str], None], ended: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        """From now on call `gone` with a node that went, `ended` with one that said how it ended,
        from a thread."""
        threading.Thread(target=self._follow, args=(gone, ended), name="peers", daemon=True).start()

    def leave(self, code: int) -> None:
        """Say how this node's part ended."""
        self._left.set()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._send({"end": int(code)})

    def _follow(self, gone: Callable[[str], None], ended: Callable[[str, int], None]) -> None:
        messages, self._unread = self._unread, []
        while not self._left.is_set():
            self._hear(messages, gone, ended)
            try:
                messages = self._read()
            except (OSError, ValueError):
                if not self._left.is_set() and self._first not in self._out:
                    gone(self._first)
                return

    def _hear(
        self,
        messages: list[dict[str, Any]],
        gone: Callable[[str], None],
        ended: Callable[[str, int], None],
    ) -> None:
        for said in messages:
            if "gone" in said:
                self._out.add(said["gone"])
                gone(said["gone"])
            elif "ended" in said:
                self._out.add(said["ended"])
                if said["ended"] != self._host:
                    ended(said["ended"], said["code"])

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # whoever reads finds out who went
            while not self._left.wait(hub.BEAT):
                self._send({"beat": True})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._connection is not None
        with self._lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> list[dict[str, Any]]:
        """The next whole lines; OSError where the first node is silent or gone."""
        assert self._connection is not None
        data = self._connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the first node closed the connection")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def in_touch(hosts: Sequence[str], host: str, endpoint: tuple[str, int]) -> Iterator[Peers | None]:
    """This node's connection to the others, None where it is alone. The first one holds them all.

    Raises ConvoyError where the port was taken since the nodes agreed on it.
    """
    if len(hosts) == 1:
        yield None
        return
    own = None
    if host == hosts[0]:
        try:
            own = Hub(hosts, endpoint[1])
        except OSError as error:
            raise ConvoyError(
                f"{host} cannot listen on port {endpoint[1]} for the other nodes' signs of life: "
                f"{error.strerror}. Start the run again: another port is chosen."
            ) from error
    try:
        yield Peers(host, hosts[0], endpoint)
    finally:
        if own is not None:
            own.close()


def is_failure(code: int) -> bool:
    """Whether a node that ended so surely leaves ranks of others waiting: those that finished or
    were asked to stop end together."""
    return code not in (ExitCode.FINISHED, ExitCode.RESUMABLE)
