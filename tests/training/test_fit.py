"""The search for the largest batch, with real steps of an agent under a memory limit of the test's
own."""

import time
from types import SimpleNamespace

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytest
import torch

from convoy import config
from convoy.agents.calls import AgentCalls
from convoy.config.settings import SPEED_SWITCHES
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.topology import Topology
from convoy.training import fit
from convoy.training.fit import Fit, RealSteps, search
from convoy.training.speed.acceleration import Acceleration
from convoy.training.speed.recipe import Recipe, Switch


class Agent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
        self.seen: list[int] = []

    def forward(self, features):
        self.seen.append(len(features["x"]))
        return {"y": self.layer(features["x"]).relu()}

    def compute_loss(self, features, targets, predictions):
        return (predictions["y"] - targets["y"]).square().mean()

    def get_optimizers(self):
        adam = torch.optim.Adam(self.parameters())
        return {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.StepLR(adam, 1)}


class LimitedMemory:
    """Counts what autograd keeps for the backward pass; more than `total` is out of memory."""

    def __init__(self, total: int) -> None:
        self.total, self.used, self.most, self.cleared = total, 0, 0, 0

    def clear(self) -> None:
        self.used = self.most = 0
        self.cleared += 1

    def peak(self) -> int:
        return self.most

    def keep(self, value: torch.Tensor) -> torch.Tensor:
        self.used += value.nbytes
        self.most = max(self.most, self.used)
        if self.used > self.total:
            raise torch.OutOfMemoryError("the test's memory is full")
        return value

    def give_back(self, value: torch.Tensor) -> torch.Tensor:
        self.used -= value.nbytes
        return value


@pytest.fixture
def steps():
    agent = Agent()
    sample = ({"x": torch.randn(2, 64)}, {"y": torch.randn(2, 64)})
    switches = {name: Switch(False, "") for name in SPEED_SWITCHES}
    speed = Acceleration(Recipe("plain", switches), agent, 1)
    return RealSteps(agent, AgentCalls(agent), sample, ["a", "b"], speed, None), agent


def run(steps, total: int, first: int, **options) -> tuple[Fit, LimitedMemory]:
    memory = LimitedMemory(total)
    with torch.autograd.graph.saved_tensors_hooks(memory.keep, memory.give_back):
        return search(steps, memory, first, **options), memory


def bytes_of(steps, batch: int) -> int:
    found, _ = run(steps, 2**40, batch, most=batch)
    return found.peak


@pytest.mark.parametrize("first", [1, 8, 64, 500])
@pytest.mark.parametrize("largest", [1, 13, 64, 200])
def test_finds_the_largest_batch_from_below_and_from_above(steps, first, largest):
    take, agent = steps
    needed = bytes_of(take, largest)
    total = int(needed / (1 - fit.MARGIN)) + 1
    found, memory = run(take, total, first)
    assert found.complete and largest - max(1, largest // 16) < found.batch <= largest
    assert found.peak <= total * (1 - fit.MARGIN)
    # What was tried are real steps of that size, and memory is cleared on both sides of each.
    assert {trial.batch for trial in found.trials} <= set(agent.seen)
    assert memory.cleared == 2 * len(found.trials)


def test_nothing_fits(steps):
    found, _ = run(steps[0], 16, 8)
    assert (found.batch, found.complete, found.peak) == (0, True, None)
    assert all(trial.peak is None for trial in found.trials)


def test_ends_when_its_time_is_up(steps, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    ours = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(fit, "time", ours)
    found, _ = run(steps[0], 2**40, 4, seconds=60)
    assert [trial.batch for trial in found.trials] == [4, 8] and not found.complete
    assert found.batch == 8


def test_another_error_is_not_taken_for_full_memory(steps):
    def broken(batch: int) -> float:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        search(broken, LimitedMemory(1), 4)


@pytest.fixture
def settings(ego_cache):
    words = [
        "agent=bev_fusion_agent",
        f"cache_path={ego_cache}",
        "trainer.params.accelerator=cpu",
        "dataloader.params.num_workers=0",
    ]
    return config.load(words, Topology(), tree.config_directory())


def test_on_the_cpu_it_says_why_it_cannot(settings):
    with pytest.raises(ConvoyError, match="torch sees no GPU here"):
        fit.require_gpu(settings.config)
