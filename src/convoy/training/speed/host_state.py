"""What of a step a CUDA graph would freeze: random numbers of the host, and counters there."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn


def reason_against_graph(before: "HostState", after: "HostState") -> str | None:
    """What changed on the host in a step, if anything: replaying a graph would not repeat it."""
    if before.random != after.random:
        return "the agent draws random numbers on the host"
    for name, value in after.numbers.items():
        if before.numbers.get(name, value) != value:
            return f"{name} of the agent changes from step to step"
    return None


class HostState:
    """The state of the random generators of the host, and the numbers that modules hold."""

    def __init__(self, agent: nn.Module) -> None:
        numpy_state: Any = np.random.get_state()
        self.random = (
            random.getstate(),
            (numpy_state[1].tobytes(), numpy_state[2]),
            torch.get_rng_state().numpy().tobytes(),
        )
        self.numbers = {
            f"{path}.{name}".lstrip("."): value
            for path, module in agent.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, (int, float, str)) and name != "training"
        }
