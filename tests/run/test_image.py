"""One digest for what a file tree holds: names, modes, contents, and nothing else."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.run.image import LARGE_BYTES, content_digest, entries


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "usr/bin/python",
        "opt/convoy/src/a.py",
        "etc/hosts",
        "proc/1/status",
        "opt/convoy/image.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "bin").symlink_to("usr/bin")
    return tmp_path


def test_entries_name_what_is_there_sorted_and_without_what_a_runtime_brings(tree: Path):
    assert [path for path, _, _ in entries(tree)] == [
        "bin",
        "etc",
        "opt",
        "opt/convoy",
        "opt/convoy/src",
        "opt/convoy/src/a.py",
        "usr",
        "usr/bin",
        "usr/bin/python",
    ]
    assert next(entries(tree)) == ("bin", "120777", "usr/bin")


def test_small_and_large_files_count_with_the_digest_of_their_content(tree: Path):
    large = bytes(range(256)) * (LARGE_BYTES // 256)
    (tree / "usr/bin/large").write_bytes(large)
    found = {path: content for path, _, content in entries(tree)}
    assert found["usr/bin/large"] == hashlib.sha256(large).hexdigest()
    assert found["usr/bin/python"] == hashlib.sha256(b"usr/bin/python").hexdigest()


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda tree: (tree / "usr/bin/python").write_text("another"),
    "mode": lambda tree: (tree / "usr/bin/python").chmod(0o755),
    "new file": lambda tree: (tree / "opt/convoy/src/b.py").touch(),
    "new folder": lambda tree: (tree / "opt/empty").mkdir(),
    "renamed": lambda tree: (tree / "usr/bin/python").rename(tree / "usr/bin/python3"),
    "link's target": lambda tree: ((tree / "bin").unlink(), (tree / "bin").symlink_to("usr/sbin")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_content_is_seen(tree: Path, change: str):
    before = content_digest(tree)
    CHANGES[change](tree)
    assert content_digest(tree) != before


def test_times_and_what_the_runtime_brings_are_not_content(tree: Path):
    before = content_digest(tree)
    os.utime(tree / "usr/bin/python", (0, 0))
    (tree / "etc/hosts").write_text("127.0.0.1 gl001")
    (tree / "proc/2").mkdir()
    (tree / "opt/convoy/image.json").write_text("{}")
    assert content_digest(tree) == before
