"""Two ranks over gloo: the mean of the gradients against DistributedDataParallel's."""

import json
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convoy.training.process_group import leave_process_group
from convoy.training.speed import gradients
from convoy.training.speed.gradients import Buckets, GradientMean
from convoy.training.speed.whole_step import WholeStep

SEVERAL = Buckets(128, 128, 128)  # bytes
STEPS = 4


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)  # gradients do not arrive in the order of the parameters
        self.used = nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 5))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.last(self.used(inputs)))


def _rank(rank: int, port: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    gradients.LARGE = 256  # bytes: two of the weights are reduced where they lie
    generator = torch.Generator().manual_seed(rank)
    data = [torch.randn(5, 6, generator=generator) for _ in range(STEPS)]
    print(json.dumps([_with_ddp(data), _in_one_piece(data), _in_one_piece(data, bf16=True)]))
    leave_process_group()


def _trained(model: Model) -> list[nn.Parameter]:
    return [entry for entry in model.parameters() if entry.requires_grad]


def _with_ddp(data: list[torch.Tensor]) -> list[list[float]]:
    torch.manual_seed(0)
    model = Model()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(_trained(model), lr=1e-2)
    for batch in data:
        optimizer.zero_grad()
        wrapped(batch).square().mean().backward()
        optimizer.step()
    return [entry.flatten().tolist() for entry in model.parameters()]


def _in_one_piece(data: list[torch.Tensor], bf16: bool = False) -> list[list[float]]:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(_trained(model), lr=1e-2)

    def loss(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model(batch).square().mean()}

    parameters = list(model.parameters())
    mean = GradientMean(parameters, 2, bf16, SEVERAL)
    step = WholeStep(loss, loss, optimizer, parameters, mean=mean, graph=False)
    for batch in data:
        step(batch)
    if not bf16:
        gradients_of = [entry.grad for entry in _trained(model) if entry.grad is not None]
        assert len(gradients_of) == 6
        assert all(entry.data_ptr() % gradients.ALIGNED == 0 for entry in gradients_of)
    return [entry.flatten().tolist() for entry in model.parameters()]


def test_two_ranks_take_ddps_steps_to_the_bit():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in ranks]
    for theirs, ours, compressed in outputs:
        assert ours == theirs
        assert compressed != ours
        for one, other in zip(compressed, ours, strict=True):
            assert one == pytest.approx(other, abs=0.02)  # four steps of 1e-2
    assert outputs[0] == outputs[1]


def test_a_rank_without_a_gradient_that_rank_0_has_says_so():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        mean = GradientMean(parameters, 1)
        for entry in parameters:
            entry.sum().backward()
        parameters[1].grad = None
        with pytest.raises(RuntimeError, match="1 parameters got a gradient on rank 0 and none"):
            mean.wait()
    finally:
        dist.destroy_process_group()


def _cut(sizes: list[int], buckets: Buckets) -> list[list[int]]:
    """Floats of each parameter in each bucket."""
    parts = gradients._cut([nn.Parameter(torch.ones(size)) for size in sizes], buckets)
    return [[entry.numel() for entry in part] for part in parts]


def test_what_arrives_last_has_a_bucket_of_its_own():
    sizes = [30, 10, 5, 40, 8, 2, 3]
    assert _cut(sizes, Buckets(100, 200, 20)) == [[30], [10, 5, 40], [8], [2, 3]]
    assert _cut(sizes, Buckets(100, 200, 0)) == [[30], [10, 5, 40], [8, 2, 3]]
    assert _cut([4], Buckets(100, 200, 20)) == [[4]]
    assert _cut([2, 1], Buckets(100, 200, 20)) == [[2, 1]]


def test_over_a_fast_link_they_are_few():
    nvlink, pcie = 478.0, 31.5
    layers = [4 << 20] * 14  # floats, 16 MiB each
    few, many = (_cut(layers, gradients.buckets_over(rate)) for rate in (nvlink, pcie))
    assert [len(part) for part in few] == [7, 6, 1] and len(many) == 14
    assert gradients.buckets_over(None) == gradients.MANY


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]))
