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
from torch.utils.checkpoint import checkpoint

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


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _mean(*sizes: int) -> tuple[list[nn.Parameter], GradientMean]:
    """Each parameter a bucket of its own."""
    parameters = [nn.Parameter(torch.ones(size)) for size in sizes]
    return parameters, GradientMean(parameters, 1, sizes=Buckets(1, 1, 0))


def test_a_step_that_lacks_a_gradient_of_the_first_is_an_error(alone):
    (one, other), mean = _mean(2, 3)
    (one.sum() + other.sum()).backward()
    mean.wait()
    one.sum().backward()
    with pytest.raises(RuntimeError, match="1 parameters got no gradient in this step"):
        mean.wait()


def test_a_gradient_that_the_first_step_lacked_is_an_error(alone):
    """Without it the ranks would part in silence: it is in no bucket."""
    (one, other), mean = _mean(2, 3)
    one.sum().backward()
    mean.wait()
    with pytest.raises(RuntimeError, match="a gradient that it did not get in the first step"):
        (one.sum() + other.sum()).backward()


def test_a_parameter_whose_gradient_comes_in_parts_leaves_with_the_last(alone, monkeypatch):
    """As under a module that is checkpointed and used twice."""
    (one, other), mean = _mean(2, 3)

    def step() -> None:
        for weight in (one, other, one):
            weight.sum().backward()
        mean.wait()

    step()
    sent: list[list[float]] = []
    plain = gradients._Bucket.begin
    monkeypatch.setattr(
        gradients._Bucket,
        "begin",
        lambda bucket: (sent.append(bucket.parameters[0].grad.tolist()), plain(bucket))[1],
    )
    one.grad = other.grad = None
    step()
    assert sent == [[1, 1, 1], [2, 2]]  # `other`, whose gradient was there first


def test_a_module_that_is_checkpointed_and_used_twice(alone):
    layer, head = nn.Linear(4, 4), nn.Linear(4, 4)
    mean = GradientMean([*layer.parameters(), *head.parameters()], 1, sizes=Buckets(1, 1, 0))
    inputs = torch.ones(2, 4, requires_grad=True)
    for _ in range(3):
        once = checkpoint(layer, inputs, use_reentrant=True)
        loss = head(checkpoint(layer, once, use_reentrant=True)).square().mean()
        expected = torch.autograd.grad(head(layer(layer(inputs))).square().mean(), layer.weight)
        layer.zero_grad()
        loss.backward()
        mean.wait()
        assert torch.allclose(layer.weight.grad, *expected)


def test_buckets_leave_in_one_order_whatever_is_there_first(alone, monkeypatch):
    """Else two ranks could wait for each other's with different ones."""
    parameters, mean = _mean(1, 2, 3)
    sum(entry.sum() for entry in parameters).backward()
    mean.wait()
    order = [bucket.parameters[0].numel() for bucket in mean._buckets]
    sent: list[int] = []
    plain = gradients._Bucket.begin
    monkeypatch.setattr(
        gradients._Bucket,
        "begin",
        lambda bucket: (sent.append(bucket.parameters[0].numel()), plain(bucket))[1],
    )
    for entry in sorted(parameters, key=lambda entry: -order.index(entry.numel())):
        entry.sum().backward()
    assert sent == order
    mean.wait()


def test_while_it_is_paused_gradients_add_up_here(alone):
    (weight,), mean = _mean(2)
    for factor in (1, 3):
        weight.grad = None
        for mean.paused in (True, True, False):
            (factor * weight).sum().backward()
        mean.wait()
        assert weight.grad.tolist() == [3 * factor] * 2


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
