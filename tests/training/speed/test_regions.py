"""A compiled forward pass whose gradients leave one after another; traced and differentiated by
torch's compiler, and run as it is, so no C++ compiler is needed."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo import trace_rules
from torch._dynamo.backends.distributed import DDPOptimizer
from torch._functorch._aot_autograd.autograd_cache import check_cacheable
from torch.nn import functional

from convoy.training.speed import operators, regions
from convoy.training.speed.acceleration import allow_autocast_in_cache

heard: list[str] = []


@torch.library.custom_op("convoy_tests::heard", mutates_args=())
def hear(value: Tensor) -> Tensor:
    heard.append("between the layers")
    return value.clone()


@torch.library.custom_op("convoy_tests::marked", mutates_args=())
def mark(value: Tensor) -> Tensor:
    return value.clone()


hear.register_fake(torch.empty_like)
mark.register_fake(torch.empty_like)
mark.register_autograd(lambda _, gradient: hear(gradient))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        first: Tensor = mark(self.first(inputs).tanh())
        second: Tensor = self.second(first)
        return second


@pytest.fixture(autouse=True)
def small_regions(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(regions, "FIRST_REGION", 8)
    monkeypatch.setattr(regions, "REGION", 8)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def backward(model: Model, forward: Callable[..., Any]) -> list[str]:
    """What happened in the order in which it did: gradients that arrived, and the mark."""
    for name, entry in model.named_parameters():
        entry.register_post_accumulate_grad_hook(lambda _, name=name: heard.append(name))
    loss = forward(torch.arange(32.0).reshape(4, 8) / 32).square().mean()
    heard.clear()
    loss.backward()
    return list(heard)


def test_gradients_of_the_last_layers_arrive_before_the_backward_pass_of_the_first():
    model = Model()
    order = backward(model, regions.compiled(model.forward, "aot_eager"))
    mark_at = order.index("between the layers")
    assert {"second.weight", "second.bias"} == set(order[:mark_at])
    assert {"first.weight", "first.bias"} == set(order[mark_at + 1 :])


def test_compiled_in_one_piece_they_all_arrive_at_its_end():
    """Which is why there are regions."""
    model = Model()
    order = backward(model, torch.compile(model.forward, backend="aot_eager"))
    assert order[0] == "between the layers" and len(order) == 5


def test_values_and_gradients_are_those_of_the_plain_pass():
    plain = Model()
    cut = copy.deepcopy(plain)
    backward(plain, plain.forward)
    backward(cut, regions.compiled(cut.forward, "aot_eager"))
    for one, other in zip(cut.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_under_autocast_that_keeps_cast_weights_each_step_has_its_own():
    """As without a graph, where Lightning enters autocast."""
    plain = Model()
    cut = copy.deepcopy(plain)
    compiled = regions.compiled(cut.forward, "aot_eager")
    inputs = torch.arange(32.0).reshape(4, 8) / 32
    for model, forward in ((plain, plain.forward), (cut, compiled)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
                loss = forward(inputs).float().square().mean()
            loss.backward()
            optimizer.step()
    for one, other in zip(cut.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


class Varied(nn.Module):
    """Operations before the first parameter, a parameter that is frozen, one that is used twice,
    layers that write in place, several values from one region to the next."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(layers))
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        kept = value = inputs.sin().cos() * self.frozen
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            value = functional.relu(norm(layer(value)), inplace=True) + kept
            value = value + functional.linear(kept, layer.weight)
            if number % 2:
                kept = value.detach()
                kept.add_(1.0)
        return value


@pytest.mark.parametrize(
    ("layers", "first", "usual"), [(1, 1 << 20, 1 << 20), (1, 8, 8), (5, 8, 300), (5, 300, 700)]
)
def test_it_is_cut_where_torch_cuts_it_under_ddp(layers, first, usual, monkeypatch):
    monkeypatch.setattr(regions, "FIRST_REGION", first)
    monkeypatch.setattr(regions, "REGION", usual)
    ours: list[str] = []
    theirs: list[str] = []

    def into(codes: list[str]) -> Callable[..., Any]:
        def compiler(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
            codes.append(graph.code)
            return graph

        return compiler

    model, inputs = Varied(layers), torch.rand(4, 8)
    regions.compiled(model.forward, into(ours))(inputs)
    torch._dynamo.reset()
    cutter = DDPOptimizer(usual, into(theirs), first)
    torch.compile(model.forward, dynamic=False, backend=cutter.compile_fn)(inputs)
    assert ours == theirs
    assert (len(ours) == 1) == (first > 1000)


def test_torch_keeps_what_it_made_of_each_region(monkeypatch):
    """Autocast among the fast operators, or a fork's, is no reason to trace again, nor are the
    operators themselves, in whatever order things happen."""
    monkeypatch.setattr(
        torch._inductor.config,
        "unsafe_marked_cacheable_functions",
        torch._inductor.config.unsafe_marked_cacheable_functions,
    )
    kept = []

    class Resizes(Model):
        def forward(self, inputs: Tensor) -> Tensor:
            image = super().forward(inputs).reshape(1, 1, 4, 8)
            return functional.interpolate(image, scale_factor=2, mode="bilinear")

    def compiler(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        check_cacheable(graph)  # or an error
        kept.append(graph)
        return graph

    allow_autocast_in_cache()
    trace_rules.clear_lru_cache()  # as init_process_group does
    with operators.replaced():
        regions.compiled(Resizes().forward, compiler)(torch.ones(4, 8))
    assert len(kept) > 1
    assert "_enter_autocast" in "".join(graph.code for graph in kept)
