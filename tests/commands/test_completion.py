"""Completion, through the real shell."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convoy.commands import completion

TRY = """
eval "$(convoy completion bash)"
compopt() { :; }
COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
_convoy
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["wat"], ["watch"]),
        (["plan", "--ai"], ["--aim"]),
        (["plan", "--aim", ""], ["balanced", "cheapest", "soonest"]),
        (["train", "trainer.params.max_e"], ["trainer.params.max_epochs="]),
        (["submit", "--nodes", "2", "--", "global_b"], ["global_batch="]),
        (["train", "data.skip_bad="], ["data.skip_bad=false", "data.skip_bad=true"]),
        (["train", "agent=bev"], ["agent=bev_fusion_agent"]),
        (["nonsense", ""], []),
        (["train", "cache_path=/"], []),
    ],
)
def test_candidates(words, found):
    assert completion.candidates(words) == found


def test_agents_of_a_fork(foreign_tree):
    assert "agent=foreign_agent" in completion.candidates(["train", "agent="])


def test_runs(preempted_run, monkeypatch):
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(preempted_run.parents[1]))
    assert completion.candidates(["watch", "1"]) == ["12"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("convoy wat", "watch"),
        ("convoy train agent=bev", "bev_fusion_agent"),
        ("convoy repo", "report"),
        ("convoy submit --nodes 2 -- global_b", "global_batch="),
    ],
)
def test_in_bash(line, shown):
    bash = shutil.which("bash")
    assert bash is not None
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", TRY, "bash", line],
        text=True,
        capture_output=True,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout.split() == [shown], done.stderr


def test_in_zsh(requirement, tmp_path):
    """At a terminal: what is typed, a tab, and what the line becomes."""
    zsh = shutil.which("zsh")
    requirement("zsh", zsh is not None, "no zsh here; apt-get install zsh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "ready> "}
        os.execve(zsh, [zsh, "-f", "-i"], environment)

    def until(text: str) -> None:
        shown, deadline = "", time.monotonic() + 30
        while not re.search(text, shown):
            assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(terminal, 4096).decode()

    try:
        os.write(terminal, b'eval "$(convoy completion zsh)"; print loaded\n')
        until(r"\nloaded")
        for typed, becomes in (
            ("convoy wat", "convoy watch "),
            ("convoy plan --ai", "convoy plan --aim "),
            ("convoy train agent=bev", "convoy train agent=bev_fusion_agent "),
            ("convoy submit --nodes 2 -- global_b", "global_batch=$"),
        ):
            os.write(terminal, f"\x15{typed}\t".encode())
            until(becomes)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
