"""Agreements of two real processes over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convoy.errors import ConvoyError
from convoy.topology import Topology
from convoy.training.process_group import HostGroup, process_group

PROGRAM = """
import json, os, sys
from datetime import timedelta
import torch
from convoy.errors import ConvoyError
from convoy.topology import Topology
from convoy.training.process_group import process_group

rank = int(os.environ["RANK"])
topology = Topology(rank=rank, local_rank=rank, world_size=2, local_world_size=2)
said = {}
with process_group(topology, "cpu", timedelta(seconds=60)) as host_group:
    said["work"] = host_group.on_rank_zero(lambda: f"done on {topology.rank}")
    said["gathered"] = host_group.gather(("rank", rank))
    said["flags"] = [host_group.rank_zero_says(rank == 0), host_group.rank_zero_says(rank == 1)]
    said["sum"] = host_group.sum(torch.tensor([1.0, float(rank)])).tolist()
    try:
        host_group.on_rank_zero(lambda: (_ for _ in ()).throw(ConvoyError("the disk is full")))
    except ConvoyError as error:
        said["error"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def both_ranks() -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in said]


def test_rank_zero_works_for_all(both_ranks):
    assert [said["work"] for said in both_ranks] == ["done on 0"] * 2


def test_values_come_in_order_of_rank(both_ranks):
    assert all(said["gathered"] == [["rank", 0], ["rank", 1]] for said in both_ranks)


def test_rank_zeros_word_counts(both_ranks):
    assert all(said["flags"] == [True, False] for said in both_ranks)


def test_sums_are_over_all_ranks(both_ranks):
    assert all(said["sum"] == [2.0, 1.0] for said in both_ranks)


def test_a_mistake_on_rank_zero_is_raised_on_every_rank(both_ranks):
    assert all(said["error"] == "the disk is full" for said in both_ranks)


def test_alone_there_is_nothing_to_agree_on():
    with process_group(Topology(), "cpu", None) as host_group:
        assert host_group.gather(5) == [5] and host_group.rank_zero_says(True)
        assert host_group.sum(torch.tensor([3.0])).tolist() == [3.0]
        with pytest.raises(ConvoyError, match="no"):
            host_group.on_rank_zero(lambda: (_ for _ in ()).throw(ConvoyError("no")))
    assert isinstance(host_group, HostGroup)
