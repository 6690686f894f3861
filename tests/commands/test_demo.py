"""`make demo`, as a user runs it, for the built-in agent and for NAVSIM's TransFuser."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def demo(out: Path, agent: str) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, "-m", "convoy.commands.demo", "--agent", agent, "--out", str(out)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return json.loads((out / "summary.json").read_text()), done.stdout


def check_artefacts(summary: dict, printed: str) -> None:
    assert summary["world_size"] == 4
    assert summary["samples_per_s"] > 0
    assert Path(summary["plot"]).read_bytes().startswith(b"\x89PNG")
    logs = sorted((Path(summary["run_dir"]) / "logs").glob("rank-*"))
    assert [log.name for log in logs] == [f"rank-{rank:03d}.log" for rank in range(4)]
    assert "node 1 of 2" in logs[3].read_text()
    assert all(word in printed for word in ("constant velocity", "before", "after", "samples/s"))


def test_the_built_in_agent_learns_on_two_nodes(tmp_path):
    summary, printed = demo(tmp_path / "demo", "bev_fusion_agent")
    check_artefacts(summary, printed)
    assert summary["ade_after"] <= 0.5 * summary["ade_constant_velocity"]
    assert summary["ade_after"] < summary["ade_before"]
    assert summary["fde_after"] > summary["ade_after"]


def test_navsims_transfuser_trains_unedited_on_two_nodes(navsim_tree, tmp_path):
    summary, printed = demo(tmp_path / "demo", "transfuser_agent")
    check_artefacts(summary, printed)
    assert summary["ade_after"] != summary["ade_before"]


@pytest.mark.parametrize("agent", ["no_such_agent"])
def test_an_unknown_agent_is_told_before_data_are_written(agent, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "convoy.commands.demo",
            "--agent",
            agent,
            "--out",
            str(tmp_path / "demo"),
        ],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("convoy: Unknown agent 'no_such_agent'. Found: ")
    assert not (tmp_path / "demo").exists()
