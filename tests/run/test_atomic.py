import os
import subprocess
import sys

import pytest

from convoy.run.atomic import leftovers, replacing, write_text


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "below" / "file"
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "one")
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        file.write(b"tw")
        raise OSError("full")
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["file"]


def test_two_writers_of_one_name_never_tear_it(tmp_path):
    """Two processes write one file as fast as they can; whoever reads it finds it whole."""
    program = """
import sys
from pathlib import Path
from convoy.run.atomic import write_text
for _ in range(300):
    write_text(Path(sys.argv[1]), sys.argv[2] * 200_000, durable=False)
"""
    path = tmp_path / "file"
    both = [subprocess.Popen([sys.executable, "-c", program, path, who]) for who in "ab"]
    seen = set()
    while any(process.poll() is None for process in both):
        if path.exists():
            text = path.read_text()
            assert len(text) == 200_000 and len(set(text)) == 1
            seen.add(text[0])
    assert [process.returncode for process in both] == [0, 0] and seen
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_leaves_is_found(tmp_path):
    program = """
import os, sys
from pathlib import Path
from convoy.run.atomic import replacing
with replacing(Path(sys.argv[1])) as file:
    print("in", flush=True)
    sys.stdin.read()
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline() == b"in\n"
    writer.kill()
    writer.communicate()
    assert [path.parent for path in leftovers(tmp_path)] == [tmp_path]
    assert not (tmp_path / "file").exists()
