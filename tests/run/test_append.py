import errno
import os
import subprocess
import sys
import time

import pytest

from convoy.run import append
from convoy.run.append import append_line

WRITES = """
import sys
from pathlib import Path
from convoy.run.append import append_line
for number in range(100):
    append_line(Path(sys.argv[1]), f"{sys.argv[2]} {number}")
"""

DIES = """
import os, sys, signal
from pathlib import Path
from convoy.run import append
with append._turn(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def without_atomic_append(program):
    """As on NFS: the place is that of the end of the file when it was opened."""
    return (
        "import os\n"
        "truly_open = os.open\n"
        "def open_(path, flags, *rest):\n"
        "    descriptor = truly_open(path, flags & ~os.O_APPEND, *rest)\n"
        "    if flags & os.O_APPEND:\n"
        "        os.lseek(descriptor, 0, os.SEEK_END)\n"
        "    return descriptor\n"
        "os.open = open_\n" + program
    )


def test_many_writers_lose_nothing_where_nothing_is_atomic(tmp_path):
    path = tmp_path / "lines"
    program = without_atomic_append(WRITES)
    many = [subprocess.Popen([sys.executable, "-c", program, path, who]) for who in "abcd"]
    assert [process.wait() for process in many] == [0] * 4
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{who} {number}" for who in "abcd" for number in range(100))
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_was_killed_in_its_turn_holds_up_the_next_one_only_for_a_while(
    tmp_path, monkeypatch
):
    path, marker = tmp_path / "lines", tmp_path / ".lines.turn"
    dead = subprocess.run([sys.executable, "-c", DIES, marker])
    assert dead.returncode < 0 and marker.exists()
    monkeypatch.setattr(append, "PATIENCE", 0.5)
    began = time.monotonic()
    append_line(path, "first")
    assert 0.5 <= time.monotonic() - began < 5
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n" and not marker.exists()


def test_a_turn_that_changes_hands_is_waited_for(tmp_path, monkeypatch):
    """However long all of them take together."""
    marker = tmp_path / ".lines.turn"
    monkeypatch.setattr(append, "PATIENCE", 0.3)
    program = (
        "import sys, time, pathlib\n"
        "for _ in range(10):\n"
        "    path = pathlib.Path(sys.argv[1] + '.new')\n"
        "    path.touch()\n"
        "    path.replace(sys.argv[1])\n"
        "    time.sleep(0.1)\n"
        "pathlib.Path(sys.argv[1]).unlink()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(marker)]) as others:
        while not marker.exists():
            time.sleep(0.01)
        append_line(tmp_path / "lines", "mine")
        assert others.wait(10) == 0


def test_what_cannot_be_written_is_an_error_and_leaves_no_turn(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "lines"
    append_line(path, "first")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            append_line(path, "second")
    assert list(tmp_path.iterdir()) == [path]
    with path.open("a") as file:
        file.write("cut")
    append_line(path, "third")
    assert path.read_text().splitlines() == ["first", "cut", "third"]
    with pytest.raises(OSError, match="No such file"):
        append_line(tmp_path / "no folder" / "lines", "fourth")
