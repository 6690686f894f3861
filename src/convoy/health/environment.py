"""What the environment that a run uses is made of: image, interpreter, packages, weights."""

import importlib.metadata
import os
import sys
from pathlib import Path

from convoy.health.finding import Status
from convoy.run.image import read_manifest


def examine_manifest() -> tuple[Status, str]:
    manifest = read_manifest()
    if manifest is None:
        return Status.OK, "not in an image"
    return (
        Status.OK,
        f"{manifest['variant']}, commit {manifest['commit'][:12]}, content "
        f"{manifest['digest'][:19]}…",
    )


def examine_python() -> tuple[Status, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] in ((3, 11), (3, 12))
    return Status.OK if good else Status.FAIL, f"{version} ({sys.executable})" + (
        "" if good else ": 3.11 or 3.12 is needed"
    )


def examine_isolation() -> tuple[Status, str]:
    """Modules from the host's home directory or PYTHONPATH win over the image's, unseen."""
    own = {sys.prefix, sys.base_prefix, "/usr/lib/python3", str(Path(__file__).parents[1])}
    own |= {str(Path(folder).resolve()) for folder in _linked_folders()}
    foreign = [
        path
        for path in sys.path
        if path and not any(path == root or path.startswith(f"{root}/") for root in own)
    ]
    if not foreign:
        return Status.OK, "no module comes from elsewhere"
    remedy = (
        "unset PYTHONPATH, or pass it on purpose with --env"
        if read_manifest()
        else "fine if it is meant"
    )
    return (
        Status.FAIL if read_manifest() else Status.WARN
    ), f"modules are also taken from {', '.join(foreign)}: {remedy}"


def _linked_folders() -> list[str]:
    """What .pth files add to sys.path: NAVSIM's trees, and a checkout's src."""
    folders = []
    for site in (path for path in sys.path if path.endswith("-packages")):
        for file in Path(site).glob("*.pth"):
            folders += [line for line in file.read_text().splitlines() if line.startswith("/")]
    return folders


def examine_packages() -> tuple[Status, str]:
    """What is installed, against what was when the image was built."""
    found = {item.name.lower(): item.version for item in importlib.metadata.distributions()}
    manifest = read_manifest()
    if manifest is None:
        return Status.OK, f"{len(found)} installed"
    wrong = [
        f"{name} {found.get(name, 'missing')} instead of {version}"
        for name, version in manifest["python"].items()
        if found.get(name) != version
    ]
    if wrong:
        return Status.FAIL, f"{'; '.join(wrong[:3])}: something shadows the image's packages"
    return (
        Status.OK,
        f"{len(manifest['python'])} as installed at the build, lock {manifest['lock'][:19]}…",
    )


def examine_weights() -> tuple[Status, str]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    models = sorted(
        path.name.removeprefix("models--").replace("--", "/") for path in home.glob("hub/models--*")
    )
    return Status.OK, ", ".join(
        models
    ) or f"none in {home} (only for agents that start from pretrained weights)"
