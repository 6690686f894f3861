"""The documentation is true: its tree, its links, its settings."""

import re
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def tree() -> dict[str, str]:
    block = re.search(r"## What is where\n\n```\n(.*?)```", README, re.DOTALL)
    assert block
    return dict(line.split(maxsplit=1) for line in block.group(1).splitlines())


def test_the_tree_lists_every_folder_and_nothing_else():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.split()
    top = {f"{path.split('/')[0]}/" for path in tracked if "/" in path}
    package = {
        "/".join(path.split("/")[:3]) + "/"
        for path in tracked
        if re.match(r"src/convoy/[^/]+/", path)
    }
    folders = (top - {"src/"}) | {"src/convoy/"} | package
    assert {entry for entry in tree() if entry.endswith("/")} == folders
    assert all((ROOT / entry).exists() for entry in tree())


def test_the_first_screen_shows_both_commands():
    first_screen = "\n".join(README.splitlines()[:24])
    assert "make demo" in first_screen and "make test" in first_screen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets, page


def test_every_documented_setting_exists():
    config = OmegaConf.load(ROOT / "src/convoy/conf/settings.yaml")
    table = (
        (ROOT / "docs/training.md")
        .read_text()
        .split("## Settings of Convoy's own")[1]
        .split("\n## ")[0]
    )
    names = [
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    ]
    assert len(names) >= 8
    for name in names:
        missing = object()
        assert OmegaConf.select(config, name, default=missing) is not missing, name
