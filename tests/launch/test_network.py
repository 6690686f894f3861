import socket
from contextlib import closing

import pytest

from convoy.errors import ConvoyError
from convoy.launch import network


@pytest.fixture
def listening():
    with closing(socket.socket()) as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_refused_by_number(listening):
    with pytest.raises(ConvoyError, match=f"Port {listening} is taken on .*CONVOY_RDZV_PORT"):
        network.free_port(listening, "77-0")


def test_a_port_taken_on_one_address_only_is_taken(monkeypatch):
    """The rendezvous listens on all addresses."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(ConvoyError, match="is taken"):
            network.free_port(server.getsockname()[1], "77-0")


def test_a_free_port_lies_above_the_clients_and_skips_taken_ones():
    first = network.free_port(None, "77-0")
    assert first in network.PORTS
    with closing(socket.socket()) as server:
        server.bind(("0.0.0.0", first))
        server.listen()
        second = network.free_port(None, "77-0")
    assert second in network.PORTS and second != first


def test_jobs_look_at_different_ports_and_nodes_at_the_same():
    assert len({network.free_port(None, f"{job}-0") for job in range(100, 120)}) > 15
    assert network.port_of("77.0") == network.port_of("77.0") != network.port_of("78.0")
    assert network.port_of("77.0") in network.PORTS


def test_loopback_is_no_address_for_peers():
    with pytest.raises(ConvoyError, match="no route to localhost but loopback"):
        network.address_towards("localhost")


def test_a_name_that_means_nothing():
    with pytest.raises(ConvoyError, match="node nowhere.invalid has no address here"):
        network.address_towards("nowhere.invalid")


def test_interfaces_of_both_families():
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("203.0.113.9") is None
    if "00000000000000000000000000000001" in open("/proc/net/if_inet6").read():
        assert network.interface_of("::1") == "lo"


def test_ipv6_endpoints_have_brackets():
    assert network.endpoint("10.0.0.1", 61000) == "10.0.0.1:61000"
    assert network.endpoint("fd00::1", 61000) == "[fd00::1]:61000"
