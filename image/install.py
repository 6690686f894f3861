"""The Python steps of both recipes: install.sh runs them as root in the image, with the image's own
Python.

- dependencies: the hash-locked set of a variant and a user's extra requirements, in
  /opt/convoy/venv, and the link to NAVSIM.
- convoy: the package on top, and the manifest with the digest of what the image holds.

Nothing that they leave behind depends on when or where they ran.
"""

import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

from checkout import link, load_sources
from environment import install_lock, install_project, pip
from lock import REQUIREMENTS

OPT = Path("/opt")
HOME = OPT / "convoy"
VENV = HOME / "venv"
PYTHON = VENV / "bin" / "python"
MANIFEST = HOME / "image.json"

# Caches and logs, which hold times, and lists of packages that the next apt-get update brings
# anyway. None of the folders that Apptainer shares with the host while it builds (/tmp, /var/tmp,
# the home directory) may ever be here.
LEFTOVERS = (
    "var/cache/apt/*",
    "var/cache/debconf/*",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/log/*",
    "etc/*-",
)


def dependencies(variant: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    lock_file = REQUIREMENTS / f"{variant}.txt"
    install_lock(PYTHON, lock_file)
    extra = HOME / "extra-requirements.txt"
    if extra.exists():
        # The lock is a constraint: what it pins, an extra requirement cannot move.
        constraints = HOME / "constraints.txt"
        constraints.write_text(
            "".join(f"{name}=={version}\n" for name, version in installed_packages().items())
        )
        pip(PYTHON, "--constraint", constraints, "--requirement", extra)
        constraints.unlink()
    link(
        [OPT / source.name for source in load_sources(HOME / "image" / "sources.toml")],
        site_packages(),
    )
    for folder in ("weights", "compat"):  # where a Hugging Face home, or libraries, can be bound
        (HOME / folder).mkdir(exist_ok=True)
    compile_bytecode(
        sysconfig.get_path("stdlib"),
        "/usr/lib/python3",
        VENV,
        OPT / "navsim",
        OPT / "nuplan-devkit",
    )
    open_to_every_user()
    # The package comes in the next step, so that its changes leave this one alone.
    for path in ("src", "entrypoint", "pyproject.toml", "README.md", "LICENSE"):
        shutil.rmtree(HOME / path, ignore_errors=True)
        (HOME / path).unlink(missing_ok=True)


def convoy(variant: str, commit: str) -> None:
    install_project(PYTHON, HOME)
    compile_bytecode(HOME / "src")
    open_to_every_user()

    sys.path.insert(0, str(HOME / "src"))
    from convoy.run.image import content_digest, lock_digest

    sources = {
        source.name: source.commit for source in load_sources(HOME / "image" / "sources.toml")
    }
    debian = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    manifest = {
        "variant": variant,
        "commit": commit,
        "lock": lock_digest(REQUIREMENTS / f"{variant}.txt"),
        "sources": sources,
        "digest": content_digest(Path("/")),
        "python": installed_packages(),
        "debian": dict(line.split("\t") for line in debian.splitlines()),
    }
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"image content {manifest['digest']}")


def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(VENV)}, scheme="venv"))


def installed_packages() -> dict[str, str]:
    found = importlib.metadata.distributions(path=[str(site_packages())])
    return dict(sorted((distribution.name.lower(), distribution.version) for distribution in found))


def compile_bytecode(*folders: Path | str) -> None:
    """Bytecode that is used whatever the sources' times say: a time that is clamped later would
    outdate it for ever in a read-only image. Some packages ship files that no Python 3 compiles, so
    failures don't count."""
    for folder in folders:
        for cache in Path(folder).rglob("__pycache__"):
            shutil.rmtree(cache)
    options = "-m compileall -qq -f -j0 --invalidation-mode=unchecked-hash".split()
    subprocess.run([PYTHON, *options, *folders], check=False)


def open_to_every_user() -> None:
    """Any uid runs the image, read-only: all is readable, nothing is setuid, and there are no
    leftovers. Modes are the same wherever it was built."""
    # Not the image's own.
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for pattern in LEFTOVERS:
        for path in Path("/").glob(pattern):
            if str(path) in mounts:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for top in ("/etc", "/opt", "/usr", "/var"):
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if f"{folder}/{name}" not in mounts]
            for name in (folder, *(f"{folder}/{file}" for file in files)):
                mode = os.lstat(name).st_mode
                # Links, folders like /var/tmp, and mounts stay as they are.
                if stat.S_ISLNK(mode) or mode & stat.S_ISVTX or name in mounts:
                    continue
                wanted = 0o755 if mode & 0o111 else 0o644
                if wanted != stat.S_IMODE(mode):  # in a layered file system each change is a copy
                    os.chmod(name, wanted)


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    dependencies(arguments[0]) if step == "dependencies" else convoy(*arguments[:2])
