"""SLURM's commands as recorded from a real controller of SLURM 22.05: programs that print files."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

RECORDED = Path(__file__).with_name("slurm_22.05")

# Which recording answers which call; `sbatch --test-only` is answered by the partition and size.
SCRIPT = """#!/bin/sh
echo "$0 $*" >> {log}
case "$(basename "$0") $*" in
    *"show node"*) cat {folder}/nodes.txt ;;
    *"show partition"*) cat {folder}/partitions.txt ;;
    squeue*) cat {folder}/queue.txt ;;
    *"show assoc"*) cat {folder}/assoc.txt ;;
    *"show qos"*) cat {folder}/qos.txt ;;
    sbatch*--test-only*) cat {folder}/test_only.txt >&2 ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Put SLURM's commands, answering from a folder of recordings, in PATH; returns their log."""

    def install(folder: Path) -> Path:
        programs, log = tmp_path / "bin", tmp_path / "calls"
        programs.mkdir()
        for name in ("scontrol", "squeue", "sacctmgr", "sbatch", "scancel"):
            path = programs / name
            path.write_text(SCRIPT.format(folder=folder, log=log))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        return log

    return install
