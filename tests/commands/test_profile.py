"""`convoy profile`: a real short training, its trace and its page."""

import json
import shutil
from pathlib import Path

import pytest

from convoy.commands.__main__ import main

RECORDED = Path(__file__).parents[1] / "run" / "traces" / "two_ranks_cpu.json.gz"


def test_a_training_is_traced_in_a_run_of_its_own(
    ego_cache, foreign_tree, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "profiled"
    words = (
        "agent=foreign_agent",
        "trainer.params.accelerator=cpu",
        "trainer.params.max_epochs=4",
        "dataloader.params.num_workers=0",
        "global_batch=4",
        f"cache_path={ego_cache}",
        f"run_dir={root}",
    )
    code = main(["profile", "--warm=2", "--steps=2", "--json", *words])
    said = capfd.readouterr()
    assert code == 0, said.err
    assert json.loads(said.out)["steps"] == 2
    figures = json.loads((root / "profile/profile.json").read_text())
    assert figures["steps"] == 2 and figures["host_parts"].keys() >= {"forward", "backward"}
    assert figures["verdict"] in (root / "profile/profile.html").read_text()
    with pytest.raises(SystemExit):
        main(["profile", "--steps=x"])
    assert main(["profile", *words]) == 1  # the directory is there
    assert "is there already" in capfd.readouterr().err


def test_a_trace_is_read_again(tmp_path, capsys):
    shutil.copy(RECORDED, tmp_path / "trace.json.gz")
    assert main(["profile", "--read", str(tmp_path / "trace.json.gz")]) == 0
    said = capsys.readouterr().out
    assert "Bound by communication" in said and "all-reduce" in said
    assert (tmp_path / "profile.html").is_file() and (tmp_path / "profile.json").is_file()
