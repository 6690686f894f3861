"""Two ranks on the CPU, trained with DistributedDataParallel and with Convoy's own mean."""

import csv

import pytest
import torch
import torch.distributed as dist

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
from convoy.training.speed.strategy import take_from_rank_zero

RUN = (
    "agent=restless_agent",
    "trainer.params.log_every_n_steps=1",
    "trainer.params.max_epochs=2",
    "data.val_fraction=0.25",
)
DDP = "speed_switches.gradient_mean=false"


def metrics(run):
    rows = csv.DictReader((run / "metrics/version_0/metrics.csv").open())
    names = ("train/loss", "val/loss", "val/ade")
    return [(name, row[name]) for row in rows for name in names if row.get(name)]


def diary(run):
    """The ranks' lines come in any order."""
    lines = sorted(run.with_name(f"{run.name}-diary").read_text().splitlines())
    assert any(line.startswith("gradients") for line in lines)
    return lines


@pytest.fixture
def trained(restless_tree, ego_cache, train, tmp_path, monkeypatch):
    """Settings to the run's directory, its last weights and what it said.

    The agent has a BatchNorm, a buffer that each rank changes and each step reads, and a callback
    that writes down the gradients as it finds them after each backward pass.
    """
    agent = restless_tree / "navsim/agents/restless.py"
    text = agent.read_text().replace(
        "        noise = ",
        "        if self.training:\n"
        "            self.seen.mul_(0.5).add_(features['ego_status'].float().mean())\n"
        "        noise = 0.01 * self.seen + ",
    )
    seen = "        self.register_buffer('seen', torch.zeros(()))\n"
    text = text.replace("        self.mlp = ", f"{seen}        self.mlp = ")
    after = (
        "    def on_after_backward(self, trainer, module):\n"
        "        found = sum(e.grad.double().sum().item() for e in module.parameters()"
        " if e.grad is not None)\n"
        "        with open(os.environ['DIARY'], 'a') as file:\n"
        "            print('gradients', found, file=file)\n\n"
    )
    at = "    def on_validation_batch_start("
    agent.write_text(text.replace(at, after + at))

    def run(name, *overrides, fails=False):
        folder = tmp_path / name
        monkeypatch.setenv("DIARY", f"{folder}-diary")
        cache = f"cache_path={ego_cache}"
        done = train(*RUN, cache, f"run_dir={folder}", *overrides, processes=2)
        assert (done.returncode != 0) == fails, done.stdout
        if fails:
            return done.stdout
        saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        return folder, saved["state_dict"], done.stdout

    return run


@pytest.mark.parametrize(
    "settings",
    [
        ("global_batch=8",),
        (
            "global_batch=8",
            "dataloader.params.batch_size=2",
            "trainer.params.gradient_clip_val=0.1",
        ),
    ],
    ids=["each batch a step", "accumulated and clipped"],
)
def test_weights_losses_and_validation_are_ddps_to_the_bit(trained, settings):
    theirs, expected, output = trained("ddp", *settings, DDP)
    assert "MiB of gradients" not in output
    ours, weights, output = trained("own", *settings)
    assert "the ranks average 0 MiB of gradients in 1 buckets" in output
    assert metrics(ours) == metrics(theirs)
    assert diary(ours) == diary(theirs)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("unused_until", [2, 99], ids=["later used", "never used"])
def test_an_agent_that_leaves_a_parameter_unused(trained, restless_tree, unused_until):
    """Never: it trains. Later: it is told what to set, for its ranks would part in silence."""
    agent = restless_tree / "navsim/agents/restless.py"
    text = agent.read_text().replace(
        "        return torch.nn.functional.l1_loss(",
        "        self.calls = getattr(self, 'calls', 0) + self.training\n"
        f"        late = self.late.sum() if self.calls > {unused_until} else 0.0\n"
        "        return late + torch.nn.functional.l1_loss(",
    )
    late = "        self.late = torch.nn.Parameter(torch.ones(3))\n"
    agent.write_text(text.replace("        self.mlp = ", f"{late}        self.mlp = "))
    if unused_until == 99:
        _, weights, _ = trained("run", "global_batch=8")
        assert weights["agent.late"].tolist() == [1, 1, 1]
        return
    output = trained("run", "global_batch=8", fails=True)
    assert "not every step gives gradients to the same parameters" in output, output
    assert "ddp_find_unused_parameters_true" in output and "Traceback" not in output


def test_buffers_of_every_kind_are_rank_zeros():
    """With one rank nothing changes; what two do shows in the statistics of the weights above."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        buffers = [torch.arange(6.0).view(2, 3), torch.tensor(7), torch.empty(0), torch.ones(2)]
        before = [buffer.clone() for buffer in buffers]
        take_from_rank_zero(buffers)
        assert all(map(torch.equal, buffers, before))
    finally:
        dist.destroy_process_group()
