"""Counted costs on disk."""

import pytest

from convoy.run import cost
from convoy.run.cost import Counted

COUNTED = Counted(54.75, 162.9, 56.0)


def test_what_was_kept_is_read(tmp_path):
    assert cost.kept(tmp_path, "my/fork") is None
    path = cost.keep(tmp_path, "my/fork", COUNTED)
    assert path.parent.parent == tmp_path and cost.kept(tmp_path, "my/fork") == COUNTED
    path.write_text('{"gflop":')
    assert cost.kept(tmp_path, "my/fork") is None


@pytest.mark.parametrize(
    "written",
    [None, [], {}, {"gflop_forward": 1, "gflop": 3}, {"gflop_forward": 1, "gflop": "x"}]
    + [{"gflop_forward": 0, "gflop": 0, "parameters": 1}],
)
def test_anything_else_is_none(written):
    assert cost.read(written) is None and cost.of_manifest({"cost": written}) is None
