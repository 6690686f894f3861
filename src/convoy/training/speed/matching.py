"""TransFuser's detection loss without a stop of the GPU: the pairs are found where the costs are.

NAVSIM's `_agent_loss` copies the costs to the host and solves one problem after the other there.
Its copies in forks (GTRS, DiffusionDrive, …) are the same statements. Wherever an agent's own
modules hold a function of these statements it is replaced by one of the same values; a function
that was changed is left alone, and said so.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convoy.training.speed import statements
from convoy.training.speed.assignment import assign

NAME = "_agent_loss"
HELPERS = ("_get_ce_cost", "_get_l1_cost", "_get_src_permutation_idx")
# Of the statements of NAVSIM's four functions (commit 0a380a9).
KNOWN = "20deab3ace46"


def find(agent: nn.Module) -> tuple[list[ModuleType], list[str]]:
    """Modules of `agent`'s packages whose matching can be replaced, and those where it cannot."""
    packages = {type(module).__module__.split(".")[0] for module in agent.modules()} - {"torch"}
    found, changed = [], []
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] not in packages or not hasattr(module, "linear_sum_assignment"):
            continue
        if fingerprint(module) == KNOWN:
            found.append(module)
        else:
            changed.append(name)
    return found, changed


@contextmanager
def replaced(modules: list[ModuleType]) -> Iterator[None]:
    """While this is open, the modules' losses find their pairs on the device."""
    before = [getattr(module, NAME) for module in modules]
    for module in modules:
        setattr(module, NAME, _loss_of(module))
    try:
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            setattr(module, NAME, function)


def fingerprint(module: ModuleType) -> str | None:
    """Of the statements of the loss and its helpers; None without."""
    return statements.fingerprint(getattr(module, name, None) for name in (NAME, *HELPERS))


def _loss_of(module: ModuleType) -> Any:
    """`_agent_loss(targets, predictions, config)` of `module`, from its own costs."""
    index = module.BoundingBox2DIndex

    def agent_loss(
        targets: dict[str, Tensor], predictions: dict[str, Tensor], config: Any
    ) -> tuple[Tensor, Tensor]:
        states, valid = targets["agent_states"], targets["agent_labels"]
        predicted_states, logits = predictions["agent_states"], predictions["agent_labels"]
        if config.latent:
            bearing = torch.arctan2(states[..., index.Y], states[..., index.X])
            limit = config.latent_rad_thresh
            valid = (-limit <= bearing) & (bearing <= limit) & valid
        count = valid.sum().clamp(min=1)

        cost = config.agent_class_weight * module._get_ce_cost(valid, logits)
        cost = cost + config.agent_box_weight * module._get_l1_cost(states, predicted_states, valid)
        columns = assign(cost.detach())

        # scipy names the rows in order, so the predictions stay where they are.
        batch = predicted_states.shape[0]
        box = columns[..., None].expand(-1, -1, states.shape[-1])
        matched_states = states.gather(1, box).flatten(0, 1)
        matched_valid = valid.gather(1, columns).flatten().float()
        l1 = functional.l1_loss(predicted_states.flatten(0, 1), matched_states, reduction="none")
        l1 = (l1.sum(-1) * matched_valid).view(batch, -1).sum() / count
        entropy = functional.binary_cross_entropy_with_logits(
            logits.flatten(), matched_valid, reduction="none"
        )
        return entropy.view(batch, -1).mean(), l1

    return agent_loss
