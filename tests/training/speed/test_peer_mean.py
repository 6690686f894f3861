"""When the ranks may average by copies. The copies themselves: test_graph_with_nccl.py."""

import dataclasses

import pytest
import torch

from convoy.topology import Topology
from convoy.training.process_group import HostGroup
from convoy.training.speed import peer_mean
from convoy.training.speed.peer_mean import impossible

NODE = Topology(rank=1, local_rank=1, world_size=4, local_world_size=4)
DEVICE = torch.device("cpu")


class Ranks(HostGroup):
    """Four of them, of which some have said `faults`."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults

    def gather(self, value):
        return [*self.faults, value]


def test_several_nodes_and_slow_links_do_not(monkeypatch):
    monkeypatch.setattr(peer_mean, "_fault", lambda *_: pytest.fail("nothing is to be tried"))
    nodes = dataclasses.replace(NODE, world_size=8, num_nodes=2)
    assert impossible(nodes, DEVICE, 450.0, Ranks()) == "the ranks are on several nodes"
    assert "carries 32 GB/s, and it takes 100" in (impossible(NODE, DEVICE, 32.0, Ranks()) or "")
    assert "carries an unknown amount" in (impossible(NODE, DEVICE, None, Ranks()) or "")


def test_one_rank_that_cannot_speaks_for_all(monkeypatch):
    monkeypatch.setattr(peer_mean, "_fault", lambda *_: None)
    assert impossible(NODE, DEVICE, 450.0, Ranks()) is None
    assert impossible(NODE, DEVICE, 450.0, Ranks("a mean was 1")) == "a mean was 1"


def test_a_gpu_that_cannot_read_anothers_memory_is_a_reason(monkeypatch):
    def refused(*_: object) -> None:
        raise RuntimeError("peer access is not supported\nat CUDASymmetricMemory.cu:1")

    monkeypatch.setattr(peer_mean, "PeerMean", refused)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: None)
    assert impossible(NODE, DEVICE, 450.0, Ranks()) == (
        "a GPU cannot read another's memory (peer access is not supported)"
    )
