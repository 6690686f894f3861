"""When the ranks may average by copies, and that the copies give the mean.

Here ranks are threads and each sees the others' tensors; on GPUs: test_graph_with_nccl.py.
"""

import contextlib
import dataclasses
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from convoy.topology import Topology
from convoy.training.process_group import HostGroup
from convoy.training.speed import peer_mean
from convoy.training.speed.peer_mean import PeerMean, reason_against_copies

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
    assert reason_against_copies(nodes, DEVICE, 450.0, Ranks()) == "the ranks are on several nodes"
    assert "carries 32 GB/s, and it takes 100" in (
        reason_against_copies(NODE, DEVICE, 32.0, Ranks()) or ""
    )
    assert "carries an unknown amount" in (reason_against_copies(NODE, DEVICE, None, Ranks()) or "")


def test_one_rank_that_cannot_speaks_for_all(monkeypatch):
    monkeypatch.setattr(peer_mean, "_fault", lambda *_: None)
    assert reason_against_copies(NODE, DEVICE, 450.0, Ranks()) is None
    assert reason_against_copies(NODE, DEVICE, 450.0, Ranks("a mean was 1")) == "a mean was 1"


def test_a_gpu_that_cannot_read_anothers_memory_is_a_reason(monkeypatch):
    def refused(*_: object) -> None:
        raise RuntimeError("peer access is not supported\nat CUDASymmetricMemory.cu:1")

    monkeypatch.setattr(peer_mean, "PeerMean", refused)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: None)
    assert reason_against_copies(NODE, DEVICE, 450.0, Ranks()) == (
        "a GPU cannot read another's memory (peer access is not supported)"
    )


class Node:
    """Stands for torch's symmetric memory and for CUDA's streams."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._tensors: dict[int, torch.Tensor] = {}
        self._all = threading.Barrier(world_size, timeout=20)
        self._here = threading.local()

    def rank(self) -> int:
        return int(self._here.rank)

    def size(self) -> int:
        return self.world_size

    @property
    def _SymmetricMemory(self) -> "Node":
        return self

    def empty_strided_p2p(
        self, size: tuple[int, ...], stride: object, dtype: torch.dtype, device: object
    ) -> torch.Tensor:
        return torch.full(size, torch.nan, dtype=dtype)

    def rendezvous(self, tensor: torch.Tensor, group: object) -> "Node":
        self._tensors[self.rank()] = tensor
        self.barrier()
        return self

    def get_buffer(self, rank: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        assert (self._tensors[rank].shape, self._tensors[rank].dtype) == (shape, dtype)
        return self._tensors[rank]

    def barrier(self) -> None:
        self._all.wait()

    def run(self, work: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        def as_rank(rank: int) -> torch.Tensor:
            self._here.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.world_size) as threads:
            return list(threads.map(as_rank, range(self.world_size)))


class Stream:
    def wait_stream(self, other: object) -> None: ...

    wait_event = record = wait_stream


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_rank_gets_the_same_mean_in_every_step(monkeypatch, world_size, dtype):
    node, stream = Node(world_size), Stream()
    monkeypatch.setattr(peer_mean, "symmetric", node)
    monkeypatch.setattr(peer_mean.dist, "group", types.SimpleNamespace(WORLD=node))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda: types.SimpleNamespace(record=lambda: None))
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 50, 1)  # no multiple of a share
    values = torch.randn(3, world_size, sum(sizes), generator=generator).to(dtype)

    def rank_of(rank: int) -> torch.Tensor:
        mean = PeerMean(sum(sizes), dtype, DEVICE, stream)
        views, found = list(mean.flat.split(sizes)), []
        for step in values:
            mean.begin(views, list(step[rank].split(sizes)))
            mean.wait()
            found.append(mean.flat.clone())
            mean.leave()
        return torch.stack(found)

    found = node.run(rank_of)
    for other in found[1:]:
        assert torch.equal(other, found[0])
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found[0], values.mean(1), rtol=tolerance, atol=tolerance)
