"""The configuration of NAVSIM's scoring, composed from its own YAML."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from convoy.config import CONF
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.importing import make_importable
from convoy.navsim.scenes import scene_split

LIGHT = "mini"  # a split without a list of tokens: Hydra takes 9 s over navtest's 12,146
NAME = "default_run_pdm_score"


def compose_scoring(split: str, overrides: Sequence[str]) -> DictConfig:
    """NAVSIM's `default_run_pdm_score` with `train_test_split=<split>` and a command line's
    overrides; interpolations are left open, since not every scoring needs each of the folders.

    Raises ConvoyError for a split, an agent or a setting that does not exist.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    groups = tree.config_directory()
    if groups is None:
        raise ConvoyError(
            "Scoring is NAVSIM's, and no NAVSIM tree is here: make navsim, or set "
            "NAVSIM_DEVKIT_ROOT."
        )
    make_importable()
    of_split = [override for override in overrides if override.startswith("train_test_split.")]
    chosen = scene_split(split, of_split)
    rest = [override for override in overrides if override not in of_split]
    search = f"hydra.searchpath=[pkg://navsim.planning.script.config.common,'file://{CONF}']"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(groups.parent / "pdm_scoring"), version_base=None):
            config = compose(
                NAME,
                [search, f"train_test_split={LIGHT}", "experiment_name=convoy", *rest],
            )
    except HydraException as error:
        raise ConvoyError(
            f"An override cannot be used: {' '.join(str(error).split())[:300]}"
        ) from error
    with open_dict(config):
        config.train_test_split = chosen
    return config


def folder(config: DictConfig, name: str) -> Path:
    """The folder that the setting `name` names.

    Raises ConvoyError, naming the variable, where it follows from one that is not set.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        return Path(str(config[name])).absolute()
    except OmegaConfBaseException as error:
        raw = OmegaConf.to_container(config, resolve=False)
        assert isinstance(raw, dict)
        raise ConvoyError(
            f"{name} is not known: give {name}=DIR, or set the variables in {raw[name]}."
        ) from error


def maps_root() -> Path:
    """NUPLAN_MAPS_ROOT, where NAVSIM reads its maps. Raises ConvoyError without maps there."""
    root = os.environ.get("NUPLAN_MAPS_ROOT")
    if not root or not (Path(root) / "nuplan-maps-v1.0.json").is_file():
        raise ConvoyError(
            f"NUPLAN_MAPS_ROOT={root} holds no nuplan-maps-v1.0.json, and NAVSIM reads its "
            "maps there. Point it at the folder of nuPlan's maps."
        )
    return Path(root)


def plain(config: DictConfig, *names: str) -> dict[str, Any]:
    """The named parts of the configuration, resolved, as what can be sent to a process."""
    return {name: OmegaConf.to_container(config[name], resolve=True) for name in names}
