"""What an image is made of: two folders, which both recipes copy, and the digests that name them.

`dependencies` is what the environment is installed from, `convoy` what changes with every commit.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from checkout import check_out, git, load_sources
from compat import lay_out
from lock import ROOT

BUILD = ROOT / "build"
DEPENDENCY_INPUTS = "install.sh install.py environment.py checkout.py lock.py sources.toml".split()
PACKAGE_INPUTS = "src entrypoint pyproject.toml README.md LICENSE image/runtime.sh".split()
RECIPES = ("Apptainer.def", "Dockerfile")


@dataclass(frozen=True)
class Inputs:
    """What an image is made of."""

    variant: str
    base: str | None  # None: the recipe's own
    commit: str
    commit_time: str
    lock: str
    navsim: str
    dependencies: str  # digest of everything that the dependencies are installed from
    everything: str  # digest of that and of the package

    @property
    def arguments(self) -> dict[str, str]:
        """The build arguments of both recipes, in the names of Apptainer.def."""
        return {
            "variant": self.variant,
            "commit": self.commit,
            "lock": self.lock,
            "navsim": self.navsim,
        }


def collect(
    context: Path,
    variant: str,
    base: str | None,
    extra: Path | None,
    weights: Path | None,
    compat: Path | None = None,
) -> Inputs:
    """Lays out `context` anew, from this checkout as it is. `extra` is a requirements file,
    `weights` a Hugging Face home, `compat` NVIDIA's forward-compatibility libraries. Raises
    CheckoutError, CompatError."""
    shutil.rmtree(context, ignore_errors=True)
    dependencies, package = context / "dependencies", context / "convoy"
    lock_file = f"requirements/{variant}.txt"
    for name in (*DEPENDENCY_INPUTS, lock_file):
        copy(ROOT / "image" / name, dependencies / "convoy" / "image" / name)
    sources = load_sources(ROOT / "image" / "sources.toml")
    for source in sources:
        check_out(source, BUILD / source.name)
        tree = BUILD / source.name
        # Their licences stay with them.
        listed = git("-C", tree, "ls-files", "-z", "--", source.package, "LICENSE*")
        for name in listed.split("\0"):
            if (tree / name).is_file():  # a sparse checkout's index names more
                copy(tree / name, dependencies / source.name / name)
    if extra:
        copy(extra, dependencies / "convoy" / "extra-requirements.txt")
    if weights:
        for path in weights.rglob("*"):
            if path.is_symlink() or path.is_file():
                copy(path, dependencies / "convoy" / "weights" / path.relative_to(weights))
    if compat:
        lay_out(compat, dependencies / "convoy" / "compat")
    everything = "ls-files -z --cached --others --exclude-standard --".split()
    for name in git("-C", ROOT, *everything, *PACKAGE_INPUTS).split("\0"):
        if name and (ROOT / name).exists():
            copy(ROOT / name, package / name)
    for folder in (context, *(path for path in context.rglob("*") if path.is_dir())):
        folder.chmod(0o755)

    own = (
        *PACKAGE_INPUTS,
        *RECIPES,
        *(f"image/{name}" for name in (*DEPENDENCY_INPUTS, lock_file)),
    )
    commit, commit_time = git("-C", ROOT, "log", "-1", "--format=%H %ct", "--", *own).split()
    if git("-C", ROOT, "status", "--porcelain", "--", *own):
        commit += "-dirty"
    dependency_digest = digest(dependencies, variant, identity(base))
    return Inputs(
        variant=variant,
        base=base,
        commit=commit,
        commit_time=commit_time,
        lock=hashlib.sha256((ROOT / "image" / lock_file).read_bytes()).hexdigest(),
        navsim=next(source.commit for source in sources if source.name == "navsim"),
        dependencies=dependency_digest,
        everything=digest(
            package, dependency_digest, *((ROOT / recipe).read_bytes() for recipe in RECIPES)
        ),
    )


def copy(source: Path, target: Path) -> None:
    """Contents and the executable bit, whatever this checkout's umask was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
        return
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def digest(folder: Path, *more: str | bytes) -> str:
    """Over names, executable bits and contents below `folder`, and `more`."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        total.update(
            f"{path.relative_to(folder)}\0{os.access(path, os.X_OK)}\0{len(content)}\0".encode()
            + content
        )
    for item in more:
        total.update(b"\0" + (item.encode() if isinstance(item, str) else item))
    return total.hexdigest()


def identity(base: str | None) -> str:
    """The content of a base that is a file; a root file system counts with its name and time."""
    if base and Path(base).is_file():
        with Path(base).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if base and Path(base).is_dir():
        return f"{Path(base).resolve()} {Path(base).stat().st_mtime_ns}"
    return base or "the recipe's"
