"""The first node's end of the connections between a job's nodes: it tells each what the others say,
and who ended or went.

Lines of JSON over TCP (convoy.launch.peers has the other end). Standard library only.
"""

import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BEAT = 1.0  # seconds between signs of life
SILENCE = 8.0  # without one for so long, a node is gone
ARRIVAL = 300.0  # seconds in which all nodes have to come: containers start at different speeds
_SEND = 5.0  # seconds until a line that nobody takes is given up


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


def _listen(port: int) -> socket.socket:
    """On every address of this machine; IPv6 may be there and switched off."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port))
