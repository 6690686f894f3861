"""torchrun's agents meet at a real store, found through the arguments that a launch gives them."""

import base64
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import RendezvousParameters
from torch.distributed.run import config_from_args, parse_args

from convoy.launch import rendezvous
from convoy.launch.rendezvous import Rendezvous
from convoy.launch.torchrun import torchrun_arguments
from convoy.topology import Launch


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


def handler(port: int, number: int):
    """As torchrun makes it for one of two nodes."""
    rendezvous.register()
    launch = Launch.by_hand({}, 2, number, f"127.0.0.1:{port}", "first")
    arguments = torchrun_arguments(launch, "127.0.0.1", Path("/scratch/run"))
    chosen, _, _ = config_from_args(parse_args(arguments))
    return get_rendezvous_handler(
        RendezvousParameters(
            chosen.rdzv_backend,
            chosen.rdzv_endpoint,
            chosen.run_id,
            chosen.min_nodes,
            chosen.max_nodes,
            chosen.local_addr,
            **chosen.rdzv_configs,
        )
    )


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nodes_meet_and_nothing_from_the_network_is_unpickled(port, tmp_path):
    """A stranger puts a pickle where torch's c10d rendezvous keeps its state."""
    nodes = [handler(port, number) for number in range(2)]
    with ThreadPoolExecutor(2) as background:
        first = background.submit(nodes[0].next_rendezvous)
        stranger = TCPStore("127.0.0.1", port, wait_for_workers=False)
        poison = base64.b64encode(pickle.dumps(Bomb(tmp_path / "ran")))
        stranger.set("torch.rendezvous.first", poison)
        time.sleep(0.5)  # c10d's agent looks at it meanwhile
        second = background.submit(nodes[1].next_rendezvous)
        found = [first.result(), second.result()]
    assert [(info.rank, info.world_size) for info in found] == [(0, 2), (1, 2)]
    for info in found:
        address = info.bootstrap_store_info
        assert (address.master_addr, address.master_port) == ("127.0.0.1", port)
    assert [node.num_nodes_waiting() for node in nodes] == [0, 0]
    assert not (tmp_path / "ran").exists()


def test_a_node_alone_needs_no_port_of_its_own():
    info = Rendezvous("127.0.0.1:0", 0, 1, "alone").next_rendezvous()
    assert info.bootstrap_store_info.master_port > 0


def test_whoever_does_not_come_is_named(port):
    soon = timedelta(seconds=0.2)
    with pytest.raises(RendezvousTimeoutError, match="node-1, node-2 did not come within"):
        Rendezvous(f"127.0.0.1:{port}", 0, 3, "first", soon).next_rendezvous()


def test_two_nodes_of_one_number_are_refused(port):
    first = Rendezvous(f"127.0.0.1:{port}", 0, 1, "first")
    first.next_rendezvous()
    with pytest.raises(RendezvousError, match="two nodes have the number 0"):
        Rendezvous(f"127.0.0.1:{port}", 0, 1, "first").next_rendezvous()


def test_a_taken_port_is_reported(port):
    with socket.create_server(("", port)), pytest.raises(RendezvousConnectionError):
        Rendezvous(f"127.0.0.1:{port}", 0, 2, "first").next_rendezvous()


def test_agents_notice_that_the_first_node_is_gone(port, monkeypatch):
    """Not at once: its ranks may have stopped on request, and theirs are about to."""
    monkeypatch.setattr(rendezvous, "GRACE", 0.3)
    nodes = [Rendezvous(f"127.0.0.1:{port}", number, 2, "first") for number in range(2)]
    with ThreadPoolExecutor(2) as background:
        found = list(background.map(Rendezvous.next_rendezvous, nodes))
    assert nodes[1].num_nodes_waiting() == 0
    found.clear()
    nodes[0]._store = None  # the last reference: the server ends
    assert nodes[1].num_nodes_waiting() == 0
    time.sleep(0.4)
    with pytest.raises(RendezvousConnectionError, match="the first node is gone"):
        nodes[1].num_nodes_waiting()
