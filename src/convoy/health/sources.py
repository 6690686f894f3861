"""The source trees of NAVSIM and nuplan-devkit."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from convoy.health.finding import Status
from convoy.run.image import read_manifest


def examine_source(name: str, package: str) -> tuple[Status, str]:
    from convoy.navsim.importing import import_agents, make_importable

    make_importable()
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return (
            Status.FAIL if read_manifest() else Status.WARN
        ), f"{package} cannot be imported: make navsim"
    folder = Path(next(iter(spec.submodule_search_locations)))
    settings = sum(1 for _ in folder.rglob("*.yaml"))
    if not settings:
        return (
            Status.FAIL,
            f"{folder} holds no YAML file: a source tree is needed, not an installed wheel",
        )
    if package == "navsim":
        import_agents()
    return Status.OK, f"{_commit(name, folder.parent)}, {settings} YAML files, {folder.parent}"


def _commit(name: str, root: Path) -> str:
    if (root / ".git").exists() and shutil.which("git"):
        return subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout.strip()[:12]
    manifest = read_manifest()
    if manifest and str(root) == f"/opt/{name}" and not os.path.ismount(root):
        return f"commit {manifest['sources'][name][:12]}"
    return "a tree of your own"
