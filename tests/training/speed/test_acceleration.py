"""What the switches leave behind when a training ends."""

import contextlib

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
def test_the_graph_is_given_up_but_after_a_failure(tmp_path, error, released):
    """It holds NCCL's communicator; after a failure its last replay may wait for ever."""
    speed = Acceleration(choose(config(accelerator="cpu"), 1), torch.nn.Linear(1, 1), 1)
    speed._step = step = Step()
    with contextlib.suppress(Exception), speed.applied(tmp_path):
        if error is not None:
            raise error
    assert step.released == released
