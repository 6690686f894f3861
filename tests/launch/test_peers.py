"""Nodes in touch: real sockets, and real processes that are killed or stopped."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from convoy.errors import ConvoyError
from convoy.launch import hub as hub_module
from convoy.launch import peers
from convoy.launch.hub import Hub
from convoy.launch.peers import LostNode, Peers, in_touch

HOSTS = ("gl001", "gl006", "gl011")

# A node of its own process: it joins, follows, and prints what it hears.
NODE = """
import sys, time
from convoy.launch.peers import Peers
host, port, speed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
import convoy.launch.hub as hub
hub.SILENCE, hub.BEAT = 8 / speed, 1 / speed
node = Peers(host, "gl001", ("127.0.0.1", port))
print(sorted(node.gather({"of": host}, patience=20).words), flush=True)
node.follow(lambda gone: print("gone", gone, flush=True))
time.sleep(60)
"""


@pytest.fixture
def fast(monkeypatch):
    """Ten times as fast as in a job."""
    monkeypatch.setattr(hub_module, "SILENCE", 0.8)
    monkeypatch.setattr(hub_module, "BEAT", 0.1)


@pytest.fixture
def hub(fast):
    made = Hub(HOSTS, 0, arrival=20)
    yield made
    made.close(patience=0)


def join(host: str, hub: Hub) -> Peers:
    return Peers(host, HOSTS[0], ("127.0.0.1", hub.port))


def gather_all(nodes: dict[str, Peers]) -> dict[str, peers.Gathering]:
    found = {}
    threads = [
        threading.Thread(target=lambda h=host, n=node: found.update({h: n.gather({"of": h})}))
        for host, node in nodes.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return found


class Heard(list):
    """What a node hears of the others, and when."""

    def __init__(self, node: Peers) -> None:
        self.began = time.monotonic()
        node.follow(self.note, lambda host, code: self.note(f"{host} ended with {code}"))

    def note(self, what: str) -> None:
        self.append((what, time.monotonic() - self.began))

    def first(self, patience: float = 5.0) -> str:
        deadline = time.monotonic() + patience
        while not self and time.monotonic() < deadline:
            time.sleep(0.01)
        return self[0][0] if self else "nothing"


def test_all_learn_what_all_say_and_how_far_their_clocks_are(hub):
    found = gather_all({host: join(host, hub) for host in HOSTS})
    assert list(found) != [] and set(found) == set(HOSTS)
    for gathering in found.values():
        assert gathering.words == {host: {"of": host} for host in HOSTS}
        assert list(gathering.words) == list(HOSTS) and gathering.missing == ()
        assert all(abs(ahead) < 0.5 for ahead in gathering.ahead.values())


def test_a_clock_that_is_ahead_is_measured(hub, monkeypatch):
    real = time.time
    nodes = {host: join(host, hub) for host in HOSTS}

    def clock() -> float:
        return real() + (90.0 if threading.current_thread().name == "wrong" else 0.0)

    monkeypatch.setattr(peers.time, "time", clock)
    wrong = threading.Thread(target=nodes["gl011"].gather, args=({},), name="wrong")
    wrong.start()
    found = gather_all({host: nodes[host] for host in HOSTS[:2]})
    wrong.join()
    assert found["gl006"].ahead["gl011"] == pytest.approx(90.0, abs=0.5)


def test_who_does_not_come_is_named(fast):
    hub = Hub(HOSTS, 0, arrival=0.3)
    try:
        found = gather_all({host: join(host, hub) for host in HOSTS[:2]})
        assert found["gl001"].missing == found["gl006"].missing == ("gl011",)
        assert join("gl011", hub).gather({}).missing == ("gl011",)  # too late: it hears so
    finally:
        hub.close(patience=0)


def test_without_the_first_node_nobody_meets():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LostNode, match="gl001"):
        Peers("gl006", "gl001", ("127.0.0.1", port)).gather({}, patience=0.3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_is_killed_or_silent_is_named_to_all(hub, number):
    """SIGSTOP is what a cut network or a node without power looks like: nothing is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODE, "gl006", str(hub.port), "10"], stdout=subprocess.PIPE
    )
    try:
        nodes = {host: join(host, hub) for host in ("gl001", "gl011")}
        assert set(gather_all(nodes)) == set(nodes)
        heard = {host: Heard(node) for host, node in nodes.items()}
        assert process.stdout.readline()
        time.sleep(0.3)
        assert not any(heard.values())
        os.kill(process.pid, number)
        assert [heard[host].first() for host in nodes] == ["gl006", "gl006"]
    finally:
        process.kill()
        process.wait()


def test_a_node_that_goes_before_all_are_there_is_named(hub):
    """Then nobody waits for it at the rendezvous."""
    waiting = join("gl001", hub)
    found = []

    def gather() -> None:
        try:
            waiting.gather({})
        except LostNode as lost:
            found.extend(lost.args)

    thread = threading.Thread(target=gather)
    thread.start()
    with socket.create_connection(("127.0.0.1", hub.port)) as going:
        going.sendall(b'{"host": "gl006", "word": {}}\n')
        time.sleep(0.3)
    thread.join(timeout=5)
    assert found == ["gl006"]


def test_what_comes_with_the_words_of_the_others_is_not_lost():
    """Lines arrive in one piece, or cut anywhere."""
    lines = (
        b'{"ended": "gl011", "code": 1}\n'
        b'{"words": {"gl006": {}}, "missing": [], "ahead": {}}\n{"beat": true}\n{"ended": "gl001", '
        b'"code": 3}\n'
    )
    for cut in (len(lines), len(lines) - 12):
        with socket.create_server(("127.0.0.1", 0)) as server:
            node = Peers("gl006", "gl001", server.getsockname())
            found = []
            thread = threading.Thread(target=lambda n=node, f=found: f.append(n.gather({})))
            thread.start()
            connection, _ = server.accept()
            connection.sendall(lines[:cut])
            thread.join(timeout=5)
            heard = Heard(node)
            connection.sendall(lines[cut:])
            heard.first()
            time.sleep(0.2)
            node.leave(0)
            connection.close()
        assert list(found[0].words) == ["gl006"]
        assert [what for what, _ in heard] == ["gl011 ended with 1", "gl001 ended with 3"]


def test_the_first_node_is_missed_by_all(fast):
    first = Hub(HOSTS, 0, arrival=20)
    nodes = {host: join(host, first) for host in HOSTS}
    gather_all(nodes)
    heard = {host: Heard(nodes[host]) for host in HOSTS[1:]}
    first.close(patience=0)  # as the kernel closes it, with the process
    assert [heard[host].first() for host in heard] == ["gl001", "gl001"]


def test_a_node_that_says_how_it_ended_did_not_go(hub):
    nodes = {host: join(host, hub) for host in HOSTS}
    gather_all(nodes)
    heard = Heard(nodes["gl011"])
    nodes["gl006"].leave(1)
    assert heard.first() == "gl006 ended with 1"
    nodes["gl001"].leave(0)
    time.sleep(0.3)
    hub.close()
    time.sleep(0.3)
    assert [what for what, _ in heard] == ["gl006 ended with 1", "gl001 ended with 0"]


def test_a_stranger_on_the_port_does_no_harm(hub):
    with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
        stranger.sendall(b'GET / HTTP/1.1\r\n\r\n{"word": 1, "host": "gl099"}\n[]\n')
        nodes = {host: join(host, hub) for host in HOSTS}
        assert set(gather_all(nodes)) == set(HOSTS)
    heard = Heard(nodes["gl006"])
    for sent in (b'{"word": 1, "host": "gl011"}\n', b"[" * 100_000 + b"\n", b"5\n"):
        with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
            stranger.sendall(sent)
    time.sleep(1.2)
    assert not heard


def test_a_node_alone_has_no_peers_and_a_taken_port_is_said():
    with in_touch(["gl001"], "gl001", ("127.0.0.1", 1)) as nobody:
        assert nobody is None
    with socket.create_server(("", 0)) as server:
        endpoint = ("127.0.0.1", server.getsockname()[1])
        with (
            pytest.raises(ConvoyError, match="gl001 cannot listen on port"),
            in_touch(HOSTS, "gl001", endpoint),
        ):
            pass


def test_which_ends_leave_others_waiting():
    assert [code for code in (0, 1, 3, 75, 137) if peers.is_failure(code)] == [1, 3, 137]
