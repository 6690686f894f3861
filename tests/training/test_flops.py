"""Floating-point operations, against numbers by hand: m x k times k x n takes 2 m k n."""

import convoy.navsim.torchvision_cpu  # noqa: F401  # before NAVSIM, which imports torchvision

# isort: split
import pytest
import torch

from convoy.agents.bev_fusion import BevFusionAgent
from convoy.agents.calls import AgentCalls
from convoy.config import compose
from convoy.navsim import tree
from convoy.navsim.agents import build_agent
from convoy.run.cost import Counted
from convoy.training.flops import count

TOKENS = ["a", "b"]
FEATURES = {
    "camera_feature": torch.rand(2, 3, 256, 1024),
    "lidar_feature": torch.rand(2, 1, 256, 256),
    "status_feature": torch.randn(2, 8),
    "ego_status": torch.randn(2, 8),
}
TARGETS = {
    "trajectory": torch.randn(2, 8, 3),
    "agent_states": torch.randn(2, 30, 5),
    "agent_labels": torch.rand(2, 30) < 0.4,
    "bev_semantic_map": torch.randint(0, 7, (2, 128, 256)).float(),
}
# (multiplications of a layer, whether its input needs a gradient): EgoStatusMLP's
MLP = [(8 * 512, False), (512 * 512, True), (512 * 512, True), (512 * 24, True)]


def counted(agent) -> Counted:
    return count(agent, AgentCalls(agent), (FEATURES, TARGETS), TOKENS)


def by_hand(layers) -> tuple[float, float]:
    """GFLOP forward, and in all: the backward pass has a product for the weights, and one for the
    input where that needs a gradient."""
    forward = sum(2 * products for products, _ in layers)
    inputs = sum(2 * products for products, needs_gradient in layers if needs_gradient)
    return forward / 1e9, (2 * forward + inputs) / 1e9


class Mlp(torch.nn.Module):
    """As large as NAVSIM's EgoStatusMLP."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (8, 512, 512, 512)
        layers = [
            layer
            for size, wider in zip(sizes, sizes[1:], strict=False)
            for layer in (torch.nn.Linear(size, wider), torch.nn.ReLU())
        ]
        self.mlp = torch.nn.Sequential(*layers, torch.nn.Linear(512, 24))

    def forward(self, features):
        return {"trajectory": self.mlp(features["ego_status"]).reshape(-1, 8, 3)}

    def compute_loss(self, features, targets, predictions):
        return (predictions["trajectory"] - targets["trajectory"]).abs().mean()


def test_an_mlp_by_hand_which_stays_as_it_was():
    agent = Mlp().eval()
    state = torch.random.get_rng_state()
    found = counted(agent)
    assert (found.gflop_forward, found.gflop) == pytest.approx(by_hand(MLP))
    assert found.parameters == pytest.approx(
        (8 * 512 + 2 * 512 * 512 + 512 * 24 + 3 * 512 + 24) / 1e6
    )
    assert not agent.training and all(entry.grad is None for entry in agent.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def encoder(channels: int, height: int, width: int) -> list[tuple[int, bool]]:
    """Of the built-in agent: each convolution halves both sides of the picture."""
    layers = []
    for index, wider in enumerate((16, 32, 64, 64)):
        height, width, size = height // 2, width // 2, 3 if index else 5
        layers.append((height * width * wider * channels * size * size, index > 0))
        channels = wider
    return [*layers, (height * width * 16 * 64, True), (16 * height * width * 256, True)]


def test_the_built_in_agent_by_hand():
    status = [(8 * 64, False), (64 * 256, True)]
    head = [(768 * 256, True), (256 * 16, True)]
    found = counted(BevFusionAgent())
    layers = [*encoder(3, 64, 256), *encoder(1, 128, 128), *status, *head]
    assert (found.gflop_forward, found.gflop) == pytest.approx(by_hand(layers))


def test_attention_counts_where_torch_fuses_it():
    class Attention(Mlp):
        def forward(self, features):
            query = self.mlp(features["ego_status"]).reshape(2, 3, 4, 2)
            attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
            return {"trajectory": attended.reshape(2, 8, 3)}

    products = 2 * 3 * 4 * 4 * 2  # two of them for each of three heads: 4 x 2 by 2 x 4, and back
    extra = counted(Attention()).gflop - counted(Mlp()).gflop
    assert extra == pytest.approx(3 * 2 * products / 1e9)


class Untraceable(Mlp):
    def compute_loss(self, features, targets, predictions):
        return super().compute_loss(features, targets, predictions).detach()


def test_what_cannot_be_counted_is_not():
    assert counted(Untraceable()) is None


def test_navsims_own_agents(navsim_tree, tmp_path):
    from convoy.navsim.weights import write_random_backbone

    weights = write_random_backbone("resnet34", tmp_path)
    config = [
        f"+agent.config.image_architecture='local-dir:{weights}'",
        "+agent.config.lidar_architecture=resnet34",
    ]
    found = [
        counted(build_agent(compose(overrides, tree.config_directory()).agent))
        for overrides in (
            ["agent=ego_status_mlp_agent", "cache_path=x"],
            ["agent=transfuser_agent", "cache_path=x", *config],
        )
    ]
    assert (found[0].gflop_forward, found[0].gflop) == pytest.approx(by_hand(MLP))
    assert found[1].gflop_forward == pytest.approx(54.75, rel=0.01)
    assert found[1].gflop == pytest.approx(162.9, rel=0.01)
    assert found[1].parameters == pytest.approx(56.0, rel=0.02)
