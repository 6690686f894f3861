"""NAVSIM's agents, unedited: finds the tree, prepares the import, builds the agent. Only this module imports navsim.

Finding the tree and listing its agents needs neither navsim nor torch, so host tools use it too.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError

CONFIG = Path("navsim/planning/script/config")


def find_tree() -> Path | None:
    """Root of the NAVSIM source tree: `NAVSIM_DEVKIT_ROOT` (a user's fork), else the importable `navsim`, else None."""
    named = os.environ.get("NAVSIM_DEVKIT_ROOT")
    if named:
        root = Path(named).absolute()
        if not (root / "navsim").is_dir():
            raise ConvoyError(
                f"NAVSIM_DEVKIT_ROOT={named} holds no navsim/ folder. Point it at the root of a NAVSIM checkout, "
                "or unset it to use the installed one."
            )
        return root
    spec = importlib.util.find_spec("navsim")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def config_directory() -> Path | None:
    """NAVSIM's Hydra folder with the `agent` and `train_test_split` groups, or None without a NAVSIM tree."""
    root = find_tree()
    return root / CONFIG / "common" if root else None


def default_split() -> Path | None:
    """NAVSIM's default train/val log split (YAML: `train_logs`, `val_logs`), or None where it is not there."""
    root = find_tree()
    path = root / CONFIG / "training" / "default_train_val_test_log_split.yaml" if root else None
    return path if path and path.is_file() else None


def is_needed_by(target: str) -> bool:
    """Whether the class path `target` (an agent's `_target_`) can only be imported with NAVSIM in place."""
    return target.split(".")[0] != "convoy"


def build_agent(agent_config: Any) -> Any:
    """Instantiate an agent from its Hydra node, NAVSIM's tree being made importable first.

    Raises ConvoyError when the class cannot be imported, or when the agent wants weights from a hub that cannot be
    reached (NAVSIM's TransFuser does, at training and at evaluation).
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if is_needed_by(agent_config._target_):
        make_importable()
    try:
        return instantiate(agent_config)
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if _is_missing_download(error):
            raise ConvoyError(
                f"The agent {agent_config._target_} downloads pretrained weights, and the model hub cannot be reached "
                f"from here ({type(cause).__name__}). Give the weights as a folder with config.json and "
                "pytorch_model.bin:\n  '+agent.config.image_architecture=\"local-dir:/path/to/folder\"' "
                "(TransFuser), or give a Hugging Face home that was filled elsewhere: HF_HOME=/path, in the image "
                "--bind /path:/opt/convoy/weights."
            ) from error
        raise ConvoyError(
            f"The agent {agent_config._target_} could not be built: {str(error).splitlines()[0]} "
            f"({type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''})"
        ) from error


def commit() -> str | None:
    """Commit of the NAVSIM tree, with `-edited` where files differ from it; None for a tree without git's folder."""
    root = find_tree()
    if root is None or not (root / ".git").exists():
        return None
    git = ["git", "-c", f"safe.directory={root}", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        edited = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "navsim"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-edited" if edited else head


def scene_split(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The `train_test_split` of that name as NAVSIM's YAML has it: `data_split`, and `scene_filter` (SceneFilter's
    arguments), after `overrides` like `train_test_split.scene_filter.log_names=[a]`. Read without Hydra, which takes
    14 s over navtrain's 103,288 tokens."""
    folder = config_directory()
    if folder is None:
        raise ConvoyError("No NAVSIM tree is here to define train_test_split: make navsim, or set NAVSIM_DEVKIT_ROOT.")
    folder = folder / "train_test_split"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(other.stem for other in folder.glob("*.yaml")))
        raise ConvoyError(f"Unknown train_test_split {name!r}. Found in {folder}: {found}.")
    split = _read_yaml(path)
    (chosen,) = [entry["scene_filter"] for entry in split.pop("defaults") if "scene_filter" in entry]
    scene_filter = _read_yaml(folder / "scene_filter" / f"{chosen}.yaml") | split.pop("scene_filter", {})
    arguments = {key: value for key, value in scene_filter.items() if not key.startswith("_")}
    result = {"data_split": split["data_split"], "scene_filter": arguments}
    for override in overrides:
        _apply(override, result)
    return result


def _apply(override: str, split: dict[str, Any]) -> None:
    import yaml

    key, _, value = override.partition("=")
    *folders, leaf = key.split(".")[1:]
    target = split
    for folder in folders:
        target = target.get(folder, {})
    if leaf not in target:
        raise ConvoyError(f"There is no setting {key!r}. Of train_test_split.scene_filter there are: "
                          f"{', '.join(split['scene_filter'])}.")  # fmt: skip
    target[leaf] = yaml.load(value, Loader=yaml.CSafeLoader)


def open_log(log: str, logs: Path, sensors: Path, scene_filter: Mapping[str, Any], sensor_config: Any) -> Any:
    """NAVSIM's SceneLoader over one log, `<logs>/<log>.pkl`: it has `tokens` and `get_scene_from_token`."""
    make_importable()
    from navsim.common.dataclasses import SceneFilter
    from navsim.common.dataloader import SceneLoader

    return SceneLoader(
        data_path=logs,
        original_sensor_path=sensors,
        scene_filter=SceneFilter(**{**scene_filter, "log_names": [log]}),
        sensor_config=sensor_config,
    )


def one_thread() -> None:
    """Keep the libraries that NAVSIM's builders call from starting threads; there is a process for each core."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    with path.open() as file:
        return yaml.load(file, Loader=yaml.CSafeLoader)


def write_random_backbone(architecture: str, folder: Path) -> Path:
    """Write randomly initialised weights of a timm model to `folder`, as `image_architecture=local-dir:<folder>` reads
    them: for trying TransFuser where no model hub can be reached. Returns `folder`."""
    import convoy.torchvision_cpu  # noqa: F401

    # isort: split
    try:
        import timm
        from timm.models import save_for_hf
    except ImportError as error:
        raise ConvoyError(
            f"timm cannot be imported ({error}): make navsim installs what NAVSIM's agents need."
        ) from error

    save_for_hf(timm.create_model(architecture, pretrained=False), str(folder), safe_serialization=False)
    return folder


def make_importable() -> None:
    """Put NAVSIM's tree on the import path, and make torchvision importable beside a CPU build of torch."""
    root = find_tree()
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    import convoy.torchvision_cpu  # noqa: F401


def _is_missing_download(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.split(".")[0] in {"huggingface_hub", "httpx", "httpcore", "requests", "urllib3"}:
            return True
        error = error.__cause__ or error.__context__
    return False
