"""A checkpoint in its agent, as NAVSIM's scoring loads it: by the agent's own `initialize()`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from convoy.errors import ConvoyError
from convoy.navsim.agents import build_agent

PREFIX = "agent."  # of the names in a checkpoint's state
SHOWN = 3  # names of tensors in a message


def load_agent(node: Mapping[str, Any], checkpoint: Path | None) -> Any:
    """The agent of a Hydra node with the weights of `checkpoint`; None for an agent without.

    Raises ConvoyError when the checkpoint is of another agent or configuration, naming tensors.
    """
    config = OmegaConf.create(dict(node))
    by_itself = "checkpoint_path" in config
    if checkpoint is not None and by_itself:
        config.checkpoint_path = str(checkpoint)
    agent = build_agent(config)
    initialize = getattr(agent, "initialize", None)
    if checkpoint is None:
        if callable(initialize):
            initialize()
        return agent
    try:
        if by_itself and callable(initialize):
            initialize()
        else:
            agent.load_state_dict(_state(checkpoint))
    except Exception as error:  # whatever an agent raises for weights that are not its own
        different = _differences(agent, checkpoint)
        reason = different or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConvoyError(
            f"{checkpoint} does not fit {type(agent).__name__}: {reason}. Name the agent and the "
            "configuration that it was trained with: agent=… agent.config.…"
        ) from error
    return agent


def _state(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def _differences(agent: Any, checkpoint: Path) -> str:
    """What the agent and the checkpoint do not share, in words; empty where that is nothing, or
    where it cannot be told."""
    try:
        held, wanted = _state(checkpoint), agent.state_dict()
    except Exception:
        return ""
    shapes = [
        f"{name} {tuple(held[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & held.keys()
        if held[name].shape != wanted[name].shape
    ]
    said = []
    for what, names in (
        ("the checkpoint lacks", sorted(wanted.keys() - held.keys())),
        ("the agent has no", sorted(held.keys() - wanted.keys())),
        ("shapes differ:", sorted(shapes)),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            said.append(f"{what} {', '.join(names[:SHOWN])}{more}")
    return "; ".join(said)
