from collections import OrderedDict

import torch

from convoy.training.host_copy import HostCopy


def test_the_copy_is_the_state_of_the_call_and_its_memory_is_kept():
    weight = torch.ones(3)
    state = {"model": OrderedDict(weight=weight), "list": [weight.double(), 1], "kind": dict}
    copies = HostCopy()
    one = copies.of(state)
    weight.add_(1)
    assert type(one["model"]) is OrderedDict and one["kind"] is dict
    assert one["model"]["weight"].tolist() == [1.0] * 3 and one["list"][0].dtype == torch.float64
    state["list"].append({"new": torch.zeros(2)})
    two = copies.of(state)
    assert two["model"]["weight"].tolist() == [2.0] * 3 and two["list"][2]["new"].tolist() == [0, 0]
    assert two["model"]["weight"].data_ptr() == one["model"]["weight"].data_ptr()


def test_what_shares_memory_is_one_tensor_in_the_copy_too():
    weight = torch.ones(3, 3, requires_grad=True)
    state = {"a": weight.detach(), "b": weight.detach(), "c": weight.detach().T}
    copied = HostCopy().of(state)
    assert copied["a"] is copied["b"] and copied["c"] is not copied["a"]
    assert copied["c"].shape == (3, 3) and not copied["a"].requires_grad


def test_sparse_tensors_and_other_shapes_than_before():
    copies = HostCopy()
    assert copies.of({"x": torch.eye(3).to_sparse()})["x"].to_dense().equal(torch.eye(3))
    assert copies.of({"x": torch.ones(2)})["x"].equal(torch.ones(2))
    assert copies.of({"x": torch.zeros(4, dtype=torch.int16)})["x"].dtype == torch.int16
