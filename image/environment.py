"""Makes a virtual environment with the hash-locked requirements and Convoy itself: `make venv`.

Standard library only, so that a Python, make and a package index are all it takes. The stamp that
it leaves makes the next call return at once, until the lock, pyproject.toml or the interpreter
change.
"""

import sys


def check_python(version: tuple) -> None:
    """First of all, in words that an old Python understands too."""
    if version not in ((3, 11), (3, 12)):
        found = ".".join(map(str, version))
        sys.exit(
            f"Convoy needs Python 3.11 or 3.12, but {sys.executable} is {found}: make "
            "PYTHON=/path/to/python3.11"
        )


check_python(sys.version_info[:2])

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lock import REQUIREMENTS, ROOT, blocks


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def index_has(python: Path, name: str, version: str) -> bool:
    """Whether pip's sources have that version for this interpreter and platform."""
    listing = subprocess.run(
        [python, "-I", "-m", "pip", "index", "versions", name], capture_output=True, text=True
    )
    return version in listing.stdout.replace(",", " ").split()


def choose_variant(
    asked: str,
    installed: str | None,
    driver: bool,
    cpu_torch: str,
    has_cpu_torch: Callable[[], bool],
) -> tuple[str, str]:
    """The set to install, and why. `has_cpu_torch` (slow: it asks the index) is called only where
    it decides."""
    if asked != "auto":
        return asked, "as asked"
    if driver:
        return "cuda", "an NVIDIA driver is present"
    if installed:
        return installed, "as installed before"
    if has_cpu_torch():
        return "cpu", "no NVIDIA driver here"
    return "cuda", (
        f"the package index has no {cpu_torch} for this Python, so this downloads about 2.7 GB; "
        "with PyTorch's CPU index in PIP_EXTRA_INDEX_URL it would not"
    )


def pip(python: Path, *arguments: str | Path) -> None:
    quiet = [] if sys.stdout.isatty() else ["-q"]  # only warnings and errors in a log
    # A pip configuration for --user installs cannot work in a virtual environment.
    environment = os.environ | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [python, "-I", "-m", "pip", "install", *quiet, *arguments]
    if subprocess.run(command, env=environment).returncode:
        sys.exit(
            "pip could not install what is locked (its message is above); then run the same "
            "command again"
        )


def install_lock(python: Path, lock_file: Path) -> None:
    """Installs the locked set, with the locked build backend."""
    with tempfile.TemporaryDirectory() as scratch:
        backend = Path(scratch, "backend.txt")
        backend.write_text(blocks(lock_file.read_text())["setuptools"])
        pip(python, "--require-hashes", "--no-deps", "--requirement", backend)
    pip(
        python,
        "--require-hashes",
        "--no-build-isolation",
        "--use-pep517",
        "--requirement",
        lock_file,
    )


def install_project(python: Path, root: Path) -> None:
    """Makes the package at `root` importable, from there."""
    pip(python, "--no-deps", "--no-build-isolation", "--editable", root)


def digest(variant: str) -> str:
    """Changes whenever an installed environment of this variant must be brought up to date."""
    parts = [
        (REQUIREMENTS / f"{variant}.txt").read_bytes(),
        (ROOT / "pyproject.toml").read_bytes(),
        os.fsencode(ROOT),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path, default=Path(".venv"))
    parser.add_argument("--variant", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()

    # The stamp's first line comes with the empty environment, variant and digest follow when all is
    # installed. The path is in it because scripts in an environment hold theirs: a moved one is
    # made anew.
    python, stamp = options.path / "bin" / "python", options.path / "convoy.stamp"
    made = f"Python {sys.version_info.major}.{sys.version_info.minor} in {options.path.resolve()}"
    stamped = stamp.read_text().splitlines() if stamp.exists() and python.exists() else []
    if stamped[:1] != [made]:
        print(f"Making an environment: {made}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", "--clear", options.path]).returncode:
            sys.exit(
                "Python could not make a virtual environment (on Debian and Ubuntu: apt install "
                "python3-venv)"
            )
        stamped = [made]
        stamp.write_text(made)

    cpu_torch = blocks((REQUIREMENTS / "cpu.txt").read_text())["torch"].split()[0]
    variant, reason = choose_variant(
        options.variant,
        stamped[1] if stamped[1:] else None,
        has_nvidia_driver(),
        cpu_torch,
        lambda: index_has(python, *cpu_torch.split("==")),
    )
    done = [made, variant, digest(variant)]
    if stamped == done:
        return
    print(f"Installing the {variant.upper()} set: {reason}", flush=True)
    stamp.write_text(made)
    install_lock(python, REQUIREMENTS / f"{variant}.txt")
    install_project(python, ROOT)
    stamp.write_text("\n".join(done))


if __name__ == "__main__":
    main()
