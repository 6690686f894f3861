"""A dry pass: a few samples through an agent before anything is staged, so that what cannot be
trained ends the run in its first seconds."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from convoy.agents.calls import AgentCalls
from convoy.data.cache import Sample
from convoy.errors import ConvoyError
from convoy.training.metrics import TrajectoryKeys

SAMPLES = 2  # BatchNorm needs more than one value per channel


@dataclass(frozen=True)
class Rehearsal:
    """What the dry pass showed; the same on every rank, since all of them take the same samples."""

    train: tuple[str, ...]  # names of the scalars that `compute_loss` returns, "loss" first
    val: tuple[str, ...]
    has_displacement: bool  # whether ADE and FDE can be computed
    note: str | None  # why not

    @property
    def monitor(self) -> str:
        """The metric that `best.ckpt` is chosen by; less is better."""
        return "val/ade" if self.has_displacement else "val/loss"


def rehearse(
    agent: Any, calls: AgentCalls, batch: Sample, tokens: Sequence[str], keys: TrajectoryKeys
) -> Rehearsal:
    """Forward and loss of `batch`, in training and in evaluation mode; the agent stays as it was.

    Modules that an agent makes in its first `forward` stay: a checkpoint that holds them can be
    loaded, and all ranks have them. Raises ConvoyError for a loss that cannot be trained, and for
    configured trajectory keys that are not there.
    """
    features, targets = batch
    with as_it_was(agent):
        agent.train()
        trained = calls.step(features, targets, lambda: tokens)
        if not trained.loss.requires_grad:
            raise ConvoyError(
                f"The loss of {type(agent).__name__} depends on no parameter that is trained: "
                "compute_loss must be computed from forward's predictions, without detach() or "
                "item()."
            )
        agent.eval()
        with torch.no_grad():
            tested = calls.step(features, targets, lambda: tokens)
    note = keys.missing(tested.predictions, targets)
    return Rehearsal(
        ("loss", *trained.parts), ("loss", *tested.parts), has_displacement=note is None, note=note
    )


@contextmanager
def as_it_was(agent: torch.nn.Module) -> Iterator[None]:
    """Put back plain attributes, buffers and the random generators' states."""
    attributes = [(module, dict(vars(module))) for module in agent.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in agent.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in agent.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, before in attributes:
            vars(module).update(before)
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer.copy_(values)
