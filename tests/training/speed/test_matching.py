"""The pairs against scipy's, and TransFuser's loss and gradients against NAVSIM's own."""

import importlib.util
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convoy.training.speed import assignment, matching

PROBLEMS = ["random", "padded boxes", "whole numbers", "constant", "equal rows", "bfloat16"]


def problems(kind: str, batch: int, n: int, seed: int) -> Tensor:
    """(batch, n, n) float32 costs; all kinds but the first have several pairings of equal cost."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(batch, n, n, generator=generator) * 50
    if kind == "padded boxes":
        padded = torch.rand(n, generator=generator) < 0.5
        cost[:, :, padded] = torch.rand(batch, n, 1, generator=generator)
    elif kind == "whole numbers":
        cost = torch.randint(0, 4, (batch, n, n), generator=generator).float()
    elif kind == "constant":
        cost = torch.zeros(batch, n, n)
    elif kind == "equal rows":
        cost[:, 1::2] = cost[:, :1]
    elif kind == "bfloat16":
        cost = cost.bfloat16().float()
    return cost


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on a GPU")
def test_the_kernel_finds_scipys_pairs(kind):
    for seed, n in enumerate([1, 2, 7, 16, 30, 33]):
        cost = problems(kind, 8, n, seed)
        assert torch.equal(assignment.assign(cost.cuda()).cpu(), assignment.assign(cost))


def test_on_the_host_each_row_has_a_column_of_its_own():
    columns = assignment.assign(problems("random", 3, 5, 0))
    assert columns.dtype == torch.int64
    assert all(sorted(row.tolist()) == list(range(5)) for row in columns)


def test_a_loss_is_known_by_its_statements_not_by_its_formatting(tmp_path):
    body = "    '''doc'''\n    return 1\n"
    first = _module(tmp_path, "first", "def _agent_loss(a: int):\n" + body)
    second = _module(tmp_path, "second", "def _agent_loss(\n    a,\n) -> int:\n    return 1\n")
    other = _module(tmp_path, "other", "def _agent_loss(a):\n    return 2\n")
    assert matching.fingerprint(first) == matching.fingerprint(second)
    assert matching.fingerprint(first) != matching.fingerprint(other)
    assert matching.fingerprint(types.ModuleType("empty")) is None


def _module(folder: Path, name: str, loss: str) -> types.ModuleType:
    helpers = "".join(f"\ndef {helper}():\n    pass\n" for helper in matching.HELPERS)
    path = folder / f"{name}.py"
    path.write_text(loss + helpers)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
