"""Weights that an agent starts from: `agent.checkpoint_path`, loaded by the agent's own
`initialize()` as NAVSIM's scoring does (its run_training ignores it)."""

import logging
import pickle
from typing import Any

import torch
from omegaconf import DictConfig

from convoy.errors import ConvoyError

logger = logging.getLogger("convoy")


def load_weights(agent: Any, agent_config: DictConfig) -> None:
    """Load what `checkpoint_path` names, if it names a file, and say how much of it was taken.

    Raises ConvoyError, naming the file, when the agent cannot load it.
    """
    path = agent_config.get("checkpoint_path")
    if path is None:
        return
    name = type(agent).__name__
    if not callable(getattr(agent, "initialize", None)):
        raise ConvoyError(
            f"agent.checkpoint_path={path} is given, and {name} has no initialize() to load it."
        )
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    try:
        agent.initialize()
    except pickle.UnpicklingError as error:
        raise ConvoyError(
            f"{path} holds more than tensors, and torch refuses to run what it asks for. If you "
            "know who made it, torch's own switch loads it: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConvoyError(
            f"{name}.initialize() cannot load {path}: {type(error).__name__}: {reason}"
        ) from error
    after = agent.state_dict()
    changed = sum(
        key not in before or not torch.equal(value, before[key]) for key, value in after.items()
    )
    logger.info(
        "weights of %s: initialize() changed %d of the agent's %d tensors%s",
        path,
        changed,
        len(after),
        "" if changed else " (it may have loaded them when it was built)",
    )
