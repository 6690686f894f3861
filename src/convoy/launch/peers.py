"""The nodes of a job's start keep in touch: what each says of itself, and which of them went.

torchrun's agents do not notice a peer that is gone (pytorch#111646), and ranks wait for it until
their collective's timeout. So each node's launcher holds a connection to the first node's, and says
once a second that it is there. A process that was killed closes its connection at once; a node
without power or network is silent. The first node tells the others who went. If it goes itself,
all notice: the rendezvous is on it, so no start survives it anyway.

Lines of JSON over TCP. Standard library only.
"""

import contextlib
import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from convoy.errors import ConvoyError, ExitCode

BEAT = 1.0  # seconds between signs of life
SILENCE = 8.0  # without one for so long, a node is gone
ARRIVAL = 300.0  # seconds in which all nodes have to come: containers start at different speeds
_SEND = 5.0  # seconds until a line that nobody takes is given up


class LostNode(Exception):
    """Nodes, named by the arguments, did not come or went away before the ranks started."""


@dataclass(frozen=True)
class Gathering:
    """What each node said, by host; who did not come; and by how many seconds each one's clock is
    ahead of the first node's."""

    words: dict[str, Any]
    missing: tuple[str, ...]
    ahead: dict[str, float]


@dataclass(eq=False)
class _Link:
    """The hub's connection to a node, or to one that has not said its name yet."""

    connection: socket.socket
    host: str = ""
    heard: float = field(default_factory=time.monotonic)
    rest: bytes = b""


class Hub:
    """On the first node: takes all nodes' connections and tells each of the others."""

    def __init__(self, hosts: Sequence[str], port: int, arrival: float = ARRIVAL) -> None:
        """Raises OSError where `port` is taken."""
        self._hosts = tuple(hosts)
        self._server = _listen(port)
        self.port: int = self._server.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._links: list[_Link] = []
        self._words: dict[str, Any] = {}
        self._ahead: dict[str, float] = {}
        self._out: set[str] = set()  # those that ended, went or never came
        self._gathered: dict[str, Any] | None = None
        self._asked = False
        self._deadline = time.monotonic() + arrival
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="hub", daemon=True)
        self._thread.start()

    def close(self, patience: float = 2.0) -> None:
        """Once this node's own last word has reached the others."""
        deadline = time.monotonic() + patience
        while self._hosts[0] not in self._out and time.monotonic() < deadline:
            time.sleep(0.02)
        self._over.set()
        self._thread.join(timeout=_SEND)

    def _serve(self) -> None:
        beat = time.monotonic()
        while not self._over.is_set():
            for key, _ in self._selector.select(timeout=BEAT / 4):
                if key.data is None:
                    self._accept()
                elif key.data in self._links:  # not lost a moment ago
                    self._receive(key.data)
            now = time.monotonic()
            self._gather(now)
            for link in [link for link in self._links if now - link.heard > SILENCE]:
                self._lose(link)
            if now - beat >= BEAT:
                beat = now
                self._tell({"beat": True})
        for link in self._links:
            link.connection.close()
        self._server.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # whoever it was has gone again
            return
        connection.settimeout(_SEND)
        link = _Link(connection)
        self._links.append(link)
        self._selector.register(connection, selectors.EVENT_READ, link)

    def _receive(self, link: _Link) -> None:
        try:
            data = link.connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            *lines, link.rest = (link.rest + data).split(b"\n")
            link.heard = time.monotonic()
            for line in lines:
                self._hear(link, json.loads(line))
        except Exception:  # anybody can connect, and send anything
            self._lose(link)

    def _hear(self, link: _Link, said: dict[str, Any]) -> None:
        if "word" in said and said["host"] in self._hosts and said["host"] not in self._words:
            link.host = said["host"]
            self._words[link.host] = said["word"]
            if self._gathered is not None:  # too late
                self._send(link, self._gathered)
        elif "clock" in said:
            # The question's way there and back: the answer was written half of that ago.
            self._ahead[link.host] = said["clock"] - (said["asked"] + time.time()) / 2
        elif "end" in said and link.host not in self._out:
            self._out.add(link.host)
            self._tell({"ended": link.host, "code": said["end"]})

    def _gather(self, now: float) -> None:
        """Once all are there, or their time is over: their clocks first, then what they said."""
        if self._gathered is not None:
            return
        late = now > self._deadline
        if not self._asked and (late or set(self._words) == set(self._hosts)):
            self._asked = True
            self._deadline = now + SILENCE
            self._tell({"asked": 0.0})
            late = False
        here = {link.host for link in self._links if link.host}
        if self._asked and (late or here <= self._ahead.keys()):
            first = self._ahead.get(self._hosts[0], 0.0)
            missing = [host for host in self._hosts if host not in self._words]
            self._out.update(missing)
            self._gathered = {
                "words": {host: self._words[host] for host in self._hosts if host in self._words},
                "missing": missing,
                "ahead": {host: ahead - first for host, ahead in self._ahead.items()},
            }
            self._tell(self._gathered)

    def _lose(self, link: _Link) -> None:
        """A connection that was closed, or of a node that is silent."""
        if link not in self._links:
            return
        self._links.remove(link)
        self._selector.unregister(link.connection)
        link.connection.close()
        if link.host and link.host not in self._out:
            self._out.add(link.host)
            self._tell({"gone": link.host})

    def _tell(self, message: dict[str, Any]) -> None:
        for link in list(self._links):
            if link.host:
                self._send(link, message)

    def _send(self, link: _Link, message: dict[str, Any]) -> None:
        if "asked" in message:
            message = {"asked": time.time()}
        try:
            link.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._lose(link)


class Peers:
    """A node's connection to the others: `gather` once, then `follow` until `leave`."""

    def __init__(self, host: str, first: str, endpoint: tuple[str, int]) -> None:
        self._host, self._first, self._endpoint = host, first, endpoint
        self._connection: socket.socket | None = None
        self._rest = b""
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
                self._connection = socket.create_connection(self._endpoint, timeout=SILENCE)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self._connection.settimeout(SILENCE)
        self._send({"host": self._host, "word": word})
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        while True:
            for said in self._read():
                if "asked" in said:
                    self._send({"clock": time.time(), "asked": said["asked"]})
                elif "words" in said:
                    return Gathering(said["words"], tuple(said["missing"]), said["ahead"])

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
        while not self._left.is_set():
            try:
                messages = self._read()
            except (OSError, ValueError):
                if not self._left.is_set() and self._first not in self._out:
                    gone(self._first)
                return
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
            while not self._left.wait(BEAT):
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


def _listen(port: int) -> socket.socket:
    """On every address of this machine; IPv6 may be there and switched off."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port))


@contextlib.contextmanager
def in_touch(hosts: Sequence[str], host: str, endpoint: tuple[str, int]) -> Iterator[Peers | None]:
    """This node's connection to the others, None where it is alone. The first one holds them all.

    Raises ConvoyError where the port was taken since the nodes agreed on it.
    """
    if len(hosts) == 1:
        yield None
        return
    hub = None
    if host == hosts[0]:
        try:
            hub = Hub(hosts, endpoint[1])
        except OSError as error:
            raise ConvoyError(
                f"{host} cannot listen on port {endpoint[1]} for the other nodes' signs of life: "
                f"{error.strerror}. Start the run again: another port is chosen."
            ) from error
    try:
        yield Peers(host, hosts[0], endpoint)
    finally:
        if hub is not None:
            hub.close()


def is_failure(code: int) -> bool:
    """Whether a node that ended so leaves ranks of others waiting: those that finished or were
    asked to stop end together."""
    return code not in (ExitCode.FINISHED, ExitCode.RESUMABLE)
