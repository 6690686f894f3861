"""Which speed switches are on, and why: decided once, logged, and kept in the run's record.

`speed=plain` is NAVSIM's step as it is, `default` what needs no compiler, `max` everything.
`speed_switches.NAME=true|false` sets one switch alone.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from convoy.config.settings import SPEED_LEVELS as LEVELS
from convoy.config.settings import SPEED_SWITCHES as SWITCHES
from convoy.errors import ConvoyError

logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class Switch:
    """A switch's state, and the reason for it in a few words."""

    on: bool
    reason: str


class Recipe:
    """The switches of a run. `recipe["bf16"]` tells whether one is on."""

    def __init__(self, level: str, switches: dict[str, Switch]) -> None:
        self.level = level
        self._switches = switches

    def __getitem__(self, name: str) -> bool:
        return self._switches[name].on

    def __iter__(self) -> Iterator[tuple[str, Switch]]:
        return iter(self._switches.items())

    def turn_off(self, name: str, reason: str) -> None:
        """Fall back from a switch; asked for by name, it is an error that it cannot be on."""
        before = self._switches[name]
        if not before.on:
            return
        if before.reason == ASKED:
            raise ConvoyError(
                f"speed_switches.{name}=true cannot be had: {reason}. Leave it out, or set it to "
                "false."
            )
        self._switches[name] = Switch(False, reason)

    def turn_on(self, name: str, reason: str) -> None:
        """Whatever the level says."""
        if not self[name]:
            self._switches[name] = Switch(True, reason)

    def record(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "level": self.level,
            "switches": {name: {"on": switch.on, "reason": switch.reason} for name, switch in self},
        }

    def log(self) -> None:
        """One line for what is on, one for each reason for which switches of the level are off."""
        on = [name for name, switch in self if switch.on]
        logger.info("speed=%s: %s", self.level, ", ".join(on) if on else "no switch is on")
        off: dict[str, list[str]] = {}
        for name, switch in self:
            if not switch.on and _has(self.level, name):
                off.setdefault(switch.reason, []).append(name)
        for reason, names in off.items():
            logger.info("speed: off, since %s: %s", reason, ", ".join(names))


ASKED = "asked for"
NO_GRAPH = "it needs the graph"


def wanted(config: DictConfig, name: str) -> bool:
    """By `speed` and the switch's own setting, whatever else may turn it off later."""
    asked = config.speed_switches[name]
    return _has(config.speed, name) if asked is None else bool(asked)


def choose(config: DictConfig, world_size: int) -> Recipe:
    """The recipe as far as the configuration decides it."""
    level = config.speed
    params = config.trainer.params
    switches: dict[str, Switch] = {}
    for name in SWITCHES:
        asked = config.speed_switches[name]
        if asked is not None:
            reason = ASKED if asked else "switched off"
        else:
            reason = "not asked for" if SWITCHES[name] is None else f"speed={level}"
        switches[name] = Switch(wanted(config, name), reason)
    recipe = Recipe(level, switches)
    if params.accelerator == "cpu":
        for name in SWITCHES:
            stays = name == "operators" and config.speed_switches[name]  # where it is asked for
            if name != "gradient_mean" and not stays:
                recipe.turn_off(name, "it is for GPUs")
    _choose_mean(recipe, config, world_size)
    if params.accelerator == "cpu":
        return recipe
    if not str(params.precision).startswith("bf16"):
        recipe.turn_off("bf16", f"trainer.params.precision={params.precision}")
    for reason in _against_graph(config):
        recipe.turn_off("graph", reason)
    if world_size > 1 and not recipe["gradient_mean"]:
        recipe.turn_off("graph", "DDP averages the gradients, which a graph cannot hold")
    if not recipe["graph"]:
        recipe.turn_off("peer_copies", NO_GRAPH)
    if params.get("deterministic"):
        if config.speed_switches.operators is None:
            recipe.turn_on("operators", "trainer.params.deterministic is on")
        recipe.turn_off("cudnn_benchmark", "trainer.params.deterministic is on")
    if params.get("benchmark") is not None:
        recipe.turn_off("cudnn_benchmark", f"trainer.params.benchmark={params.benchmark}")
    return recipe


def _choose_mean(recipe: Recipe, config: DictConfig, world_size: int) -> None:
    """Who averages the gradients of several ranks."""
    params = config.trainer.params
    against_all = None
    if world_size == 1:
        against_all = "there is one rank"
    elif not isinstance(params.strategy, str):
        against_all = "trainer.params.strategy has options of DDP"
    if against_all is not None:
        for name in ("gradient_mean", "ddp", "peer_copies", "bf16_gradients"):
            recipe.turn_off(name, against_all)
        return
    if "find_unused_parameters_true" in params.strategy:
        looks = f"strategy={params.strategy} looks for unused parameters in each step"
        recipe.turn_off("gradient_mean", looks)
    if params.get("sync_batchnorm"):
        recipe.turn_off("gradient_mean", "trainer.params.sync_batchnorm is on")
    if recipe["gradient_mean"]:
        recipe.turn_off("ddp", "gradient_mean does without DDP")
    if params.get("deterministic"):
        recipe.turn_off("ddp", "trainer.params.deterministic is on")


def _has(level: str, name: str) -> bool:
    first = SWITCHES[name]
    return first is not None and LEVELS.index(level) >= LEVELS.index(first)


def _against_graph(config: DictConfig) -> Iterator[str]:
    params = config.trainer.params
    if str(params.precision) in ("16", "16-mixed"):
        yield f"the loss scaler of precision={params.precision} waits for the GPU in each step"
    if "find_unused_parameters_true" in str(params.strategy):
        yield f"strategy={params.strategy} looks for unused parameters in each step"
    if not isinstance(params.strategy, str):
        yield "trainer.params.strategy has options of DDP, which averages outside of a graph"
    if params.accumulate_grad_batches != 1:
        yield f"a step accumulates {params.accumulate_grad_batches} batches"
    for name in ("sync_batchnorm", "detect_anomaly"):
        if params.get(name):
            yield f"trainer.params.{name} is on"
