"""NAVSIM's splits and scenes, read through NAVSIM's own loader."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.importing import make_importable


def scene_split(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The `train_test_split` of that name as NAVSIM's YAML has it: `data_split`, `scene_filter`
    (SceneFilter's arguments) and, of two-stage splits, `reactive_all_mapping`; after `overrides`
    like `train_test_split.scene_filter.log_names=[a]`. Read without Hydra, which takes 14 s over
    navtrain's 103,288 tokens."""
    folder = tree.config_directory()
    if folder is None:
        raise ConvoyError(
            "No NAVSIM tree is here to define train_test_split: make navsim, or set "
            "NAVSIM_DEVKIT_ROOT."
        )
    folder = folder / "train_test_split"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(other.stem for other in folder.glob("*.yaml")))
        raise ConvoyError(f"Unknown train_test_split {name!r}. Found in {folder}: {found}.")
    split = read_yaml(path)
    (chosen,) = [
        entry["scene_filter"] for entry in split.pop("defaults") if "scene_filter" in entry
    ]
    scene_filter = read_yaml(folder / "scene_filter" / f"{chosen}.yaml") | split.pop(
        "scene_filter", {}
    )
    arguments = {key: value for key, value in scene_filter.items() if not key.startswith("_")}
    result = split | {"scene_filter": arguments}
    for override in overrides:
        _apply(override, result)
    return result


def open_log(
    log: str,
    logs: Path,
    sensors: Path | None,
    scene_filter: Mapping[str, Any],
    sensor_config: Any,
) -> Any:
    """NAVSIM's SceneLoader over one log, `<logs>/<log>.pkl`: it has `tokens` and
    `get_scene_from_token`."""
    make_importable()
    from navsim.common.dataclasses import SceneFilter
    from navsim.common.dataloader import SceneLoader

    # NAVSIM 2 has another name for it.
    first = "sensor_blobs_path" in inspect.signature(SceneLoader.__init__).parameters
    path = {"sensor_blobs_path" if first else "original_sensor_path": sensors}
    return SceneLoader(
        data_path=logs,
        scene_filter=SceneFilter(**{**scene_filter, "log_names": [log]}),
        sensor_config=sensor_config,
        **path,
    )


def _apply(override: str, split: dict[str, Any]) -> None:
    import yaml

    key, _, value = override.partition("=")
    *folders, leaf = key.split(".")[1:]
    target = split
    for folder in folders:
        target = target.get(folder, {})
    if leaf not in target:
        raise ConvoyError(
            f"There is no setting {key!r}. Of train_test_split.scene_filter there are: "
            f"{', '.join(split['scene_filter'])}."
        )
    target[leaf] = yaml.load(value, Loader=yaml.CSafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    with path.open() as file:
        return yaml.load(file, Loader=yaml.CSafeLoader)
