import torch

from convoy.topology import Topology
from convoy.training.means import Means
from convoy.training.process_group import HostGroup

ALONE = HostGroup(Topology(), None)


def test_weighted_means_of_names_that_come_and_go():
    means = Means(("loss", "part", "never"))
    for step in range(200):
        scalars = {"loss": torch.tensor(float(step))}
        if step % 2:
            scalars["part"] = torch.tensor(1.0)
        means.add(scalars, weight=1 + step % 2)
    got = means.over_ranks(ALONE)
    weights = [1 + step % 2 for step in range(200)]
    expected = sum(step * weight for step, weight in enumerate(weights)) / sum(weights)
    assert got.keys() == {"loss", "part"}
    assert abs(got["loss"] - expected) < 1e-9 and got["part"] == 1.0


def test_without_a_step_there_is_nothing():
    assert Means(("loss",)).over_ranks(ALONE) == {}


def test_half_precision_and_unknown_names():
    means = Means(("loss",))
    means.add({"loss": torch.tensor(2.0, dtype=torch.float16), "other": torch.tensor(1.0)})
    means.add({"loss": torch.tensor(4.0)})
    assert means.over_ranks(ALONE) == {"loss": 3.0}
