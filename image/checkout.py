"""Checks NAVSIM and nuplan-devkit out at the commits that sources.toml pins, and makes them
importable: `make navsim`.

They are used from their trees, unedited: a wheel built from NAVSIM holds no YAML. Standard library
and git only.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).with_name("sources.toml")
LINK = "convoy-sources.pth"


class CheckoutError(Exception):
    """What went wrong and what to do about it, in one line."""


@dataclass(frozen=True)
class Source:
    name: str
    url: str
    commit: str  # full SHA-1
    package: str  # importable from the checkout's root
    patterns: tuple[str, ...]  # of sparse-checkout, not in cone mode


def load_sources(path: Path) -> list[Source]:
    tables = tomllib.loads(path.read_text())
    return [
        Source(name=name, **table | {"patterns": tuple(table["patterns"])})
        for name, table in tables.items()
    ]


def git(*arguments: str | Path) -> str:
    """Git's output, stripped; CheckoutError with the line that git ended on when it fails."""
    # Called from a git hook, these would name another repository.
    hook = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hook}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    stalled = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"]
    try:
        result = subprocess.run(
            ["git", *stalled, *arguments], capture_output=True, text=True, env=environment
        )
    except FileNotFoundError:
        raise CheckoutError("git is not installed, and NAVSIM comes from git") from None
    if result.returncode:
        fatal = [
            line for line in result.stderr.splitlines() if line.startswith(("fatal:", "error:"))
        ]
        raise CheckoutError((fatal or result.stderr.splitlines() or ["git failed"])[0])
    return result.stdout.strip()


def check_out(source: Source, folder: Path) -> None:
    """Leaves `folder` as a clean checkout of exactly the pinned commit, or raises CheckoutError."""
    if not folder.exists():
        clone(source, folder)
    verify(source, folder)


def clone(source: Source, folder: Path) -> None:
    unfinished = folder.with_name(
        f"{folder.name}.unfinished"
    )  # what an interrupted clone leaves is no checkout
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        git("clone", "--quiet", "--filter=blob:none", "--no-checkout", source.url, unfinished)
    except CheckoutError as error:
        raise CheckoutError(f"{source.name}: cannot clone {source.url} ({error})") from None
    try:
        git("-C", unfinished, "sparse-checkout", "set", "--no-cone", *source.patterns)
        git("-C", unfinished, "checkout", "--quiet", "--detach", source.commit)
    except CheckoutError as error:
        raise CheckoutError(
            f"{source.name}: {source.url} does not give commit {source.commit} ({error})"
        ) from None
    unfinished.rename(folder)


def verify(source: Source, folder: Path) -> None:
    remedy = f"delete {folder} and run this again; a tree of your own goes into NAVSIM_DEVKIT_ROOT"
    if not (folder / ".git").exists():
        raise CheckoutError(f"{source.name}: {folder} is not a git checkout: {remedy}")
    head = git("-C", folder, "rev-parse", "HEAD")
    if head != source.commit:
        raise CheckoutError(
            f"{source.name}: {folder} is at {head}, pinned is {source.commit}: {remedy}"
        )
    changed = git("-C", folder, "status", "--porcelain").splitlines()
    if changed:
        first, more = (
            changed[0].split(maxsplit=1)[1],
            f" and {len(changed) - 1} more" if changed[1:] else "",
        )
        raise CheckoutError(
            f"{source.name}: {folder} is not as committed ({first}{more}): {remedy}"
        )


def link(folders: list[Path], site_packages: Path) -> None:
    """Makes the packages in `folders` importable for the Python that `site_packages` belongs to."""
    (site_packages / LINK).write_text("".join(f"{folder.resolve()}\n" for folder in folders))


def check_import(source: Source, folder: Path) -> None:
    """A new Python imports the package, and from there."""
    program = f"import {source.package}; print({source.package}.__path__[0])"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    found, expected = result.stdout.strip(), folder.resolve() / source.package
    if result.returncode or Path(found) != expected:
        reason = found or (result.stderr.splitlines() or ["no output"])[-1]
        raise CheckoutError(
            f"{source.name}: import {source.package} does not give {expected} ({reason})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", nargs="?", type=Path, default=Path("build"))
    parser.add_argument("--sources", type=Path, default=SOURCES)
    options = parser.parse_args()
    options.destination.mkdir(parents=True, exist_ok=True)
    sources = {
        source: options.destination / source.name for source in load_sources(options.sources)
    }
    try:
        for source, folder in sources.items():
            check_out(source, folder)
        link(list(sources.values()), Path(sysconfig.get_path("purelib")))
        for source, folder in sources.items():
            check_import(source, folder)
            print(f"{source.name:<14} {source.commit}  {folder}")
    except CheckoutError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
