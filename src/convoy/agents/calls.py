"""Calls an agent as its signatures ask, and takes every form of loss that NAVSIM's forks return."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convoy.agents.contract import TrainableAgent
from convoy.errors import ConvoyError

EXPECTED = "a scalar tensor, a dict with one under 'loss', or a tuple that begins with one"


@dataclass(frozen=True)
class Outcome:
    """What an agent made of a batch."""

    loss: Tensor  # scalar, with its graph
    parts: dict[str, Tensor]  # the other scalars that `compute_loss` returned, detached
    predictions: Any  # what `forward` returned; a dict of tensors, for most agents


class AgentCalls:
    """`forward` gets the targets and `compute_loss` the tokens where their signatures name them."""

    def __init__(self, agent: TrainableAgent) -> None:
        """Raises ConvoyError for an agent that asks for what only a training module of its own
        could give."""
        self._agent = agent
        self._targets_too = "targets" in _asked(agent, "forward", ("features",), "targets")
        self.wants_tokens = "tokens" in _asked(
            agent, "compute_loss", ("features", "targets", "predictions"), "tokens"
        )

    def step(
        self,
        features: Any,
        targets: Any,
        tokens: Callable[[], Sequence[str]],
        forward: Callable[..., Any] | None = None,
    ) -> Outcome:
        """Predictions and loss of a batch.

        `tokens` is called only where the agent asks for them. `forward` stands for the agent's
        own: it may be compiled.
        """
        given = {"targets": targets} if self._targets_too else {}
        predictions = (forward or self._agent.forward)(features, **given)
        named = {"tokens": list(tokens())} if self.wants_tokens else {}
        returned = self._agent.compute_loss(features, targets, predictions, **named)
        loss, others = _split(returned)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConvoyError(
                f"{type(self._agent).__name__}.compute_loss returned {_description(returned)}; "
                f"expected is {EXPECTED}."
            )
        parts = {name: _scalar(value, loss) for name, value in others.items() if _is_scalar(value)}
        return Outcome(loss.reshape(()), parts, predictions)


def _asked(agent: TrainableAgent, method: str, given: tuple[str, ...], optional: str) -> set[str]:
    """Names of the parameters of `method`.

    Raises ConvoyError for a required one that nobody gives.
    """
    parameters = list(inspect.signature(getattr(agent, method)).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    lacking = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p not in positional[: len(given)]
        and p.name != optional
    ]
    whole = positional[0].name if positional[:1] and positional[0].name == "batch" else None
    if lacking or whole or (len(positional) < len(given) and not takes_all):
        asks = ", ".join(p.name for p in parameters) or "nothing"
        raise ConvoyError(
            f"{type(agent).__name__}.{method} asks for ({asks}), and Convoy calls it with "
            f"({', '.join(given)}), and {optional} where it is named. An agent that only a "
            "training module of its own can call is not supported: give it NAVSIM's signature."
        )
    return {p.name for p in parameters}


def _split(returned: Any) -> tuple[Any, Mapping[str, Any]]:
    """The loss, and what came with it by name."""
    if isinstance(returned, Mapping):
        return returned.get("loss"), {
            name: value for name, value in returned.items() if name != "loss"
        }
    if isinstance(returned, (tuple, list)) and returned:
        loss, *rest = returned
        named = [entries for entries in rest if isinstance(entries, Mapping)]
        return loss, {str(n): v for entries in named for n, v in entries.items() if n != "loss"}
    return returned, {}


def _is_scalar(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """float32 scalar on the loss's device; nothing waits for the device."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(like.device, torch.float32, non_blocking=True)
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _description(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a dict of {', '.join(map(repr, returned)) or 'nothing'}"
    if isinstance(returned, (tuple, list)) and returned:
        return f"a {type(returned).__name__} that begins with {_description(returned[0])}"
    return f"{type(returned).__name__}"
