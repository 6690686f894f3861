"""Against NAVSIM's own code: TransFuser's loss, and whole training steps in float32."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.config import compose
from convoy.navsim import tree
from convoy.navsim.agents import build_agent
from convoy.navsim.importing import make_importable
from convoy.training.speed import assignment, attention, matching, operators
from convoy.training.speed.whole_step import WholeStep

KINDS = ["random", "no labels", "all labels", "equal costs", "bfloat16", "latent"]


@pytest.fixture(scope="module")
def loss_module(navsim_tree) -> Any:
    make_importable()
    import navsim.agents.transfuser.transfuser_loss as module

    return module


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def outputs(kind: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Targets and predictions of a batch as TransFuser's loss takes them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch = 6
    labels = torch.rand(batch, 30, generator=generator) < 0.4
    if kind in ("no labels", "all labels"):
        labels = torch.full_like(labels, kind == "all labels")
    predictions = {
        "agent_states": normal(batch, 30, 5) * 20,
        "agent_labels": normal(batch, 30),
    }
    if kind == "equal costs":
        predictions["agent_labels"][:] = 0.5
        predictions["agent_states"][:, 10:, :2] = 1.0
    if kind == "bfloat16":
        predictions = {name: value.bfloat16() for name, value in predictions.items()}
    targets = {"agent_states": normal(batch, 30, 5) * 20, "agent_labels": labels}
    where = device()
    return (
        {name: value.to(where) for name, value in targets.items()},
        {name: value.to(where) for name, value in predictions.items()},
    )


def test_navsims_loss_is_the_known_one(loss_module):
    assert matching.fingerprint(loss_module) == matching.KNOWN


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_navsims(loss_module, kind):
    from navsim.agents.transfuser.transfuser_config import TransfuserConfig

    config = TransfuserConfig(latent=kind == "latent", latent_rad_thresh=1.0)
    for seed in range(5):
        targets, predictions = outputs(kind, seed)
        theirs = _loss_and_gradients(loss_module, targets, predictions, config)
        with matching.replaced([loss_module]):
            ours = _loss_and_gradients(loss_module, targets, predictions, config)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_pairs_of_equal_cost_are_scipys_on_the_gpu_too(loss_module, cuda):
    for seed in range(20):
        targets, predictions = outputs("equal costs", seed)
        valid, logits = targets["agent_labels"], predictions["agent_labels"]
        cost = 10 * loss_module._get_ce_cost(valid, logits) + loss_module._get_l1_cost(
            targets["agent_states"], predictions["agent_states"], valid
        )
        assert torch.equal(assignment.assign(cost).cpu(), assignment.assign(cost.cpu()))


def _loss_and_gradients(
    module: Any, targets: dict[str, Tensor], predictions: dict[str, Tensor], config: Any
) -> list[Tensor]:
    """Of the part that matches; on a GPU the cross-entropy of the map beside it is not the same
    from call to call."""
    leaves = {
        name: predictions[name].clone().requires_grad_()
        for name in ("agent_states", "agent_labels")
    }
    entropy, distance = module._agent_loss(targets, leaves, config)
    (10 * entropy + distance).backward()
    gradients = [value.grad for value in leaves.values() if value.grad is not None]
    assert len(gradients) == 2
    return [entropy.detach(), distance.detach(), *gradients]


@pytest.fixture(scope="module")
def transfuser(navsim_tree, tmp_path_factory) -> Any:
    """The real one, on a smaller backbone; dropout off, for two sides draw other numbers."""
    from convoy.navsim.weights import write_random_backbone

    torch.manual_seed(0)
    weights = write_random_backbone("resnet18", tmp_path_factory.mktemp("weights"))
    overrides = [
        "agent=transfuser_agent",
        "cache_path=x",
        f"+agent.config.image_architecture='local-dir:{weights}'",
        "+agent.config.lidar_architecture=resnet18",
    ]
    agent = build_agent(compose(overrides, tree.config_directory()).agent)
    for module in agent.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return agent


def batch_of(seed: int, size: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    features = {
        "camera_feature": torch.rand(size, 3, 256, 1024, generator=generator),
        "lidar_feature": torch.rand(size, 1, 256, 256, generator=generator),
        "status_feature": torch.randn(size, 8, generator=generator),
    }
    targets = {
        "trajectory": torch.randn(size, 8, 3, generator=generator).double(),
        "agent_states": torch.randn(size, 30, 5, generator=generator),
        "agent_labels": torch.rand(size, 30, generator=generator) < 0.4,
        "bev_semantic_map": torch.randint(0, 7, (size, 128, 256), generator=generator).float(),
    }
    return features, targets


def test_steps_are_those_of_navsims_own_module_in_float32(transfuser):
    from navsim.planning.training.agent_lightning_module import AgentLightningModule

    theirs, plain = copy.deepcopy(transfuser), copy.deepcopy(transfuser)
    module = AgentLightningModule(theirs)
    module.log = lambda *arguments, **options: None  # type: ignore[method-assign]
    their_optimizer = module.configure_optimizers()
    step = WholeStep(
        _outcome(plain),
        _outcome(plain),
        plain.get_optimizers(),
        list(plain.parameters()),
        graph=False,
    )
    for number in range(2):
        batch = batch_of(number)
        their_optimizer.zero_grad()
        loss = module.training_step(batch, number)
        loss.backward()
        their_optimizer.step()
        assert step(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(plain.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_replaced_operators_leave_transfusers_predictions_and_gradients_as_they_are(transfuser):
    """Not through the loss: of boxes that cost nearly the same its matching takes now this, now
    that, and a difference of 1e-7 in a prediction becomes one of 1e-3 in the loss."""
    theirs, fast = copy.deepcopy(transfuser), copy.deepcopy(transfuser)
    features, _ = batch_of(0)
    their_predictions = theirs.forward(features)
    _smooth(their_predictions).backward()
    with operators.replaced(channels_last=True), attention.replaced(attention.find(fast)):
        predictions = fast.forward(features)
    _smooth(predictions).backward()
    for name, value in predictions.items():
        assert _distance([value], [their_predictions[name]]) < 1e-5
    pairs = [
        (one.grad, other.grad)
        for one, other in zip(fast.parameters(), theirs.parameters(), strict=True)
        if one.grad is not None and other.grad is not None
    ]
    assert len(pairs) > 200
    # Batch statistics of two samples magnify the rounding of sums in another order.
    assert _distance([one for one, _ in pairs], [other for _, other in pairs]) < 1e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_has_navsims_values_and_gradients(transfuser, precision):
    (attending,) = attention.find(transfuser)
    torch.manual_seed(0)
    layer = attending(64, 4, attn_pdrop=0.0, resid_pdrop=0.0).to(device(), precision)
    tokens = torch.randn(3, 20, 64, device=device(), dtype=precision)

    def outcome() -> list[Tensor]:
        leaf = tokens.clone().requires_grad_()
        layer.zero_grad()
        result = layer(leaf)
        _smooth({"": result}).backward()
        assert leaf.grad is not None
        return [result.detach(), leaf.grad, *(entry.grad.clone() for entry in layer.parameters())]

    theirs = outcome()
    with attention.replaced([attending]):
        assert layer.forward.__func__ is attention.attend
        ours = outcome()
    assert layer.forward.__func__ is not attention.attend
    assert _distance(ours, theirs) < (1e-6 if precision == torch.float32 else 2e-2)


def test_attention_drops_in_training_alone_and_with_its_own_probability(transfuser):
    (attending,) = attention.find(transfuser)
    layer = attending(64, 4, attn_pdrop=0.5, resid_pdrop=0.0).to(device())
    tokens = torch.randn(3, 200, 64, device=device())
    with attention.replaced([attending]), torch.no_grad():
        drawn = torch.stack([layer(tokens) for _ in range(100)])
        layer.eval()
        assert torch.equal(layer(tokens), layer(tokens))
        # Dropout is right on average.
        assert _distance([drawn.mean(0)], [layer(tokens)]) < 0.1
        assert not torch.equal(drawn[0], drawn[1])


def _smooth(predictions: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.float().square().mean() for value in predictions.values()]).sum()


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative, in the Euclidean norm over all entries."""
    with torch.no_grad():
        apart = sum((a - b).square().sum().item() for a, b in zip(one, other, strict=True))
        return (apart / sum(b.square().sum().item() for b in other)) ** 0.5


def _outcome(agent: Any) -> Callable[[Any], dict[str, Tensor]]:
    def outcome(batch: Any) -> dict[str, Tensor]:
        return {"loss": agent.compute_loss(*batch, agent.forward(batch[0]))}

    return outcome
