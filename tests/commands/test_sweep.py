"""`convoy sweep`: the table, the JSON and the picture of points as runs leave them."""

import json

import pytest

from convoy.commands.__main__ import main
from convoy.host import sweep


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Two finished points, one that failed, one that never started. No SLURM here."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(tmp_path))
    words = ["+agent.config.lr=0.1,0.2", "seed=0,1"]
    found = [
        {
            "name": f"+agent.config.lr={lr},seed={seed}",
            "chosen": {words[0]: f"+agent.config.lr={lr}", words[1]: f"seed={seed}"},
        }
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    made = sweep.save(sweep.build(tmp_path / "four", words, 1, {}, 2, found))
    for number, ade in ((0, 2.0), (1, 1.0)):
        root = made.directory(made.points[number])
        (root / "metrics" / "version_0").mkdir(parents=True)
        (root / "results.json").write_text(json.dumps({"ade": ade, "fde": 2 * ade, "loss": 0.5}))
        rows = "".join(f"{step},{ade + 1 / step}\n" for step in range(1, 5))
        (root / "metrics" / "version_0" / "metrics.csv").write_text(f"step,val/ade\n{rows}")
    sweep.record(made, "12", made.points[:3], str(tmp_path / "%A_%a.log"))
    return made


def test_the_best_comes_first_and_a_picture_is_written(four, capsys):
    assert main(["sweep", str(four.root)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    heads = next(line for line in lines if line[:2] == ["lr", "seed"])
    assert heads[2:] == "state job ADE, m FDE, m val loss hours GPU-h starts".split()
    rows = [line for line in lines if line[:1] in (["0.1"], ["0.2"])]
    assert [row[:2] for row in rows] == [["0.1", "1"], ["0.1", "0"], ["0.2", "0"], ["0.2", "1"]]
    assert rows[0][2:7] == ["finished", "12_1", "1.000", "2.000", "0.5"]
    assert rows[3][2] == "new"
    assert "2 of 4 points are finished" in out and "squeue is not in PATH" in out
    assert f"convoy submit --sweep {four.root} submits what is not finished" in out
    assert four.files.picture.read_bytes().startswith(b"\x89PNG")


def test_json_of_the_newest(four, capsys):
    assert main(["sweep", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["sweep"] == str(four.root)
    best, *_, last = content["points"]
    assert best["values"] == {"agent.config.lr": "0.1", "seed": "1"} and best["ade"] == 1.0
    assert (last["state"], last["ade"], last["gpu_hours"]) == ("new", None, 0.0)
    assert not four.files.picture.exists()


def test_a_folder_that_is_no_sweep(tmp_path, capsys):
    assert main(["sweep", str(tmp_path)]) == 1
    assert "is not a sweep: it has no sweep.json" in capsys.readouterr().err
