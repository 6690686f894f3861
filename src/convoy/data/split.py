"""Which logs are trained on and which are held out, with the reason."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from omegaconf import DictConfig

from convoy.errors import ConvoyError
from convoy.navsim import tree


@dataclass(frozen=True)
class ChosenLogs:
    """Names of the logs of both splits, and why these."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    reason: str


def choose_logs(config: DictConfig, present: Sequence[str]) -> ChosenLogs:
    """The configured logs; else NAVSIM's default split where logs of both its parts are `present`;
    else a share of those, held out by a hash of their names (so it does not move when logs are
    added)."""
    if config.train_logs is not None:
        return ChosenLogs(
            tuple(config.train_logs), tuple(config.val_logs), "train_logs and val_logs"
        )
    default = tree.default_split()
    if default is not None:
        with default.open() as file:
            # 16,000 lines: OmegaConf's loader takes seconds.
            named = yaml.load(file, Loader=yaml.CSafeLoader)
        train, val = set(named["train_logs"]) & set(present), set(named["val_logs"]) & set(present)
        if train and val:
            return ChosenLogs(tuple(sorted(train)), tuple(sorted(val)), "NAVSIM's default split")
    held_out = max(1, round(config.data.val_fraction * len(present)))
    if len(present) <= held_out:
        raise ConvoyError(
            f"{config.cache_path} has {len(present)} log(s): too few to hold out data.val_fraction="
            f"{config.data.val_fraction} of them. Give train_logs and val_logs, or add logs."
        )
    by_hash = sorted(present, key=lambda log: hashlib.sha256(log.encode()).digest())
    return ChosenLogs(
        tuple(sorted(by_hash[held_out:])),
        tuple(sorted(by_hash[:held_out])),
        f"data.val_fraction={config.data.val_fraction} of the logs are held out",
    )
