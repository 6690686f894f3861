"""Finds NAVSIM's source tree and what lies in it. Standard library only: host tools use it too."""

import importlib.util
import os
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.run.record import commit_of

CONFIG = Path("navsim/planning/script/config")


def find() -> Path | None:
    """Root of the NAVSIM source tree: `NAVSIM_DEVKIT_ROOT` (a user's fork), else the importable
    `navsim`, else None."""
    named = os.environ.get("NAVSIM_DEVKIT_ROOT")
    if named:
        root = Path(named).absolute()
        if not (root / "navsim").is_dir():
            raise ConvoyError(
                f"NAVSIM_DEVKIT_ROOT={named} has no navsim/ folder. Point it at the root of a "
                "NAVSIM checkout, or unset it to use the installed one."
            )
        return root
    spec = importlib.util.find_spec("navsim")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def config_directory() -> Path | None:
    """NAVSIM's Hydra folder with the `agent` and `train_test_split` groups, or None without a
    NAVSIM tree."""
    root = find()
    return root / CONFIG / "common" if root else None


def default_split() -> Path | None:
    """NAVSIM's default train/val log split (YAML: `train_logs`, `val_logs`), or None where it is
    not there."""
    root = find()
    path = root / CONFIG / "training" / "default_train_val_test_log_split.yaml" if root else None
    return path if path and path.is_file() else None


def commit() -> str | None:
    """Commit of the NAVSIM tree, with `-edited` where files differ from it; None for a tree without
    git's folder."""
    root = find()
    return commit_of(root, "navsim") if root is not None else None
