"""A step in one piece against the plain loop; on a GPU as a graph too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.training.speed.optimizer import make_fused
from convoy.training.speed.whole_step import EAGER_STEPS, WholeStep

STEPS = EAGER_STEPS + 9


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.layers(features["image"])


def batches(device: torch.device, sizes: list[int] | None = None) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    sizes = sizes or [4] * STEPS
    return [
        (
            {"image": torch.randn(size, 3, 8, 8, generator=generator).to(device)},
            {"label": torch.randn(size, 4, generator=generator).to(device)},
        )
        for size in sizes
    ]


def train(
    device: torch.device,
    optimizer_of: Callable[[Any], torch.optim.Optimizer],
    whole: bool,
    data: list[Any],
    clip: float = 0.0,
    graph: bool = True,
) -> tuple[list[float], nn.Module]:
    torch.manual_seed(0)
    model = Model().to(device)
    optimizer = optimizer_of(model.parameters())
    make_fused(optimizer, device.type == "cuda")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)

    def loss_of(batch: Any) -> Tensor:
        features, targets = batch
        return (model(features) - targets["label"]).square().mean()

    def clip_(parameters: list[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(parameters, clip)

    def outcome_of(batch: Any) -> dict[str, Tensor]:
        return {"loss": loss_of(batch)}

    step = WholeStep(
        outcome_of,
        outcome_of,
        optimizer,
        list(model.parameters()),
        clip_ if clip else None,
        graph=graph and device.type == "cuda",
        agent=model,
    )
    losses = []
    for batch in data:
        if whole:
            losses.append(step(batch)["loss"].item())
        else:
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            if clip:
                clip_(list(model.parameters()))
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    return losses, model


OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_on_the_host_it_takes_the_same_steps_to_the_bit(optimizer, clip):
    device = torch.device("cpu")
    data = batches(device, [4, 4, 2, 4, 3, 4])
    theirs, their_model = train(device, OPTIMIZERS[optimizer], False, data, clip)
    ours, our_model = train(device, OPTIMIZERS[optimizer], True, data, clip)
    assert ours == theirs
    for one, other in zip(our_model.parameters(), their_model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_as_a_graph_it_takes_the_same_steps(cuda, optimizer, clip):
    data = batches(cuda, [4] * (STEPS - 2) + [2, 4])
    theirs, their_model = train(cuda, OPTIMIZERS[optimizer], False, data, clip)
    ours, our_model = train(cuda, OPTIMIZERS[optimizer], True, data, clip)
    assert ours == pytest.approx(theirs, rel=1e-4)
    for one, other in zip(our_model.parameters(), their_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for one, other in zip(our_model.buffers(), their_model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_an_agent_that_stops_the_gpu_trains_without_a_graph(cuda):
    class Stops(Model):
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            result = nn.functional.dropout(super().forward(features))
            return result if result.sum().item() > 0 else result * 1

    reasons = _reasons(Stops().to(cuda), cuda)
    assert len(reasons) == 1 and "cannot be recorded" in reasons[0]


def test_an_agent_that_draws_on_the_host_trains_without_a_graph(cuda):
    class Draws(Model):
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            return super().forward(features) * torch.rand(()).item()

    assert _reasons(Draws().to(cuda), cuda) == ["the agent draws random numbers on the host"]


def test_an_agent_that_counts_on_the_host_trains_without_a_graph(cuda):
    class Counts(Model):
        steps = 0

        def forward(self, features: dict[str, Tensor]) -> Tensor:
            self.steps += 1
            return super().forward(features)

    assert _reasons(Counts().to(cuda), cuda) == ["steps of the agent changes from step to step"]


def _reasons(model: nn.Module, device: torch.device) -> list[str]:
    reasons: list[str] = []
    optimizer = torch.optim.Adam(model.parameters())
    make_fused(optimizer, True)

    def loss_of(batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]["label"]).square().mean()

    def outcome_of(batch: Any) -> dict[str, Tensor]:
        return {"loss": loss_of(batch)}

    step = WholeStep(
        outcome_of,
        outcome_of,
        optimizer,
        list(model.parameters()),
        agent=model,
        give_up=reasons.append,
    )
    before = [entry.detach().clone() for entry in model.parameters()]
    for batch in batches(device):
        loss = step(batch)["loss"]
    assert torch.isfinite(loss)
    changed = zip(before, model.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in changed)
    return reasons
