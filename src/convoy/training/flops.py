"""Counts the floating-point operations that an agent needs for a sample."""

import logging
from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from convoy.agents.calls import AgentCalls
from convoy.data.cache import Sample
from convoy.run.cost import Counted
from convoy.training.rehearsal import as_it_was

logger = logging.getLogger("convoy")


def count(
    agent: torch.nn.Module, calls: AgentCalls, batch: Sample, tokens: Sequence[str]
) -> Counted | None:
    """Of `batch`, one sample for each token, forward and backward in training mode; the agent stays
    as it was.

    Matrix products, convolutions and attention count; kernels of an agent's own do not. None where
    torch's counter cannot follow the agent, or finds nothing.
    """
    features, targets = batch
    trained = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False)
    try:
        # torch has no formula for its fused attention on the CPU, but for the products in it.
        with as_it_was(agent), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            agent.train()
            with counter:
                loss = calls.step(features, targets, lambda: tokens).loss
                forward = counter.get_total_flops()
                torch.autograd.grad(loss, trained, allow_unused=True)
    except Exception as error:  # the training itself may do well without the counter
        logger.debug("its floating-point operations were not counted: %s", error)
        return None
    if not counter.get_total_flops():
        return None
    per_sample = 1e9 * len(tokens)
    return Counted(
        forward / per_sample,
        counter.get_total_flops() / per_sample,
        sum(parameter.numel() for parameter in trained) / 1e6,
    )
