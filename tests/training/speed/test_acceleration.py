"""Where kernels are kept, and what the switches leave behind when a training ends."""

import contextlib
import os

import pytest
import torch

from convoy.training.speed.acceleration import Acceleration
from convoy.training.speed.recipe import choose
from convoy.training.stopping import StoppedEarly

from .test_recipe import config


class Step:
    released = False

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("error", "released"),
    [(None, True), (StoppedEarly("after step 3"), True), (RuntimeError("CUDA"), False)],
    ids=["finished", "stopped", "failed"],
)
def test_the_graph_is_given_up_but_after_a_failure(tmp_path, monkeypatch, error, released):
    """It holds NCCL's communicator; after a failure its last replay may wait for ever."""
    speed = Acceleration(choose(config(accelerator="cpu"), 1), torch.nn.Linear(1, 1), 1)
    speed._step = step = Step()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # set back afterwards
    with contextlib.suppress(Exception), speed.applied(tmp_path):
        if error is not None:
            raise error
    assert step.released == released


def test_all_kernels_are_kept_where_other_nodes_find_them(tmp_path, monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "/tmp/of-this-node")  # as the image does
    speed = Acceleration(choose(config(accelerator="cpu"), 1), torch.nn.Linear(1, 1), 1)
    with speed.applied(tmp_path / "shared"):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "shared")
        assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "shared" / "triton")
