"""Linear assignment of many small problems: scipy's on the host, the same algorithm on a GPU."""

import importlib.util

import torch
from torch import Tensor


def assign(cost: Tensor) -> Tensor:
    """The column of each row at the least total cost: (b, n, n) floats to (b, n) int64.

    The pairs are those of `scipy.optimize.linear_sum_assignment`, among equal totals too: the
    kernel takes scipy's steps in scipy's order, in float64. On a GPU the host does not wait.
    """
    if cost.is_cuda:
        from convoy.training.speed.assignment_kernel import launch

        return launch(cost.double().contiguous())
    from scipy.optimize import linear_sum_assignment

    pairs = [torch.from_numpy(linear_sum_assignment(problem)[1]) for problem in cost.double()]
    return torch.stack(pairs).to(torch.int64)


def available() -> bool:
    """Whether a GPU could run the kernel here: Triton comes with torch's CUDA builds."""
    return importlib.util.find_spec("triton") is not None
