"""A training's checkpoints are scored while it goes on: which wait, what is kept, which is best."""

import json
from pathlib import Path

from convoy.commands.__main__ import main
from convoy.run.layout import RunDirectory
from convoy.scoring.waiting import Waiting, keep
from convoy.training.checkpoint import fingerprint

FILTER = "train_test_split.scene_filter.frame_interval=1"


def test_checkpoints_are_scored_as_they_come(score, train, ego_cache, metric_cache, tmp_path):
    """Every second epoch, though rotation keeps one checkpoint only."""
    root = tmp_path / "run"
    words = [f"metric_cache_path={metric_cache}", "--workers=1", FILTER]
    done = train(
        "agent=ego_status_mlp_agent",
        f"cache_path={ego_cache}",
        f"run_dir={root}",
        "global_batch=4",
        "data.val_fraction=0.5",
        "trainer.params.max_epochs=4",
        "checkpoint.keep=1",
        "score.every_epochs=2",
        "score.split=mini",
        f"score.arguments={json.dumps(words)}",
    )
    assert done.returncode == 0, done.stdout
    run = RunDirectory(root)
    steps = [int(path.stem[-9:]) for path in run.all_waiting_for_score()]
    assert len(steps) == 2 and not run.step_checkpoint(steps[0]).exists(), steps
    assert main(["score-waiting", str(root)]) == 0
    assert run.all_waiting_for_score() == []
    history = [json.loads(line) for line in run.score_history.read_text().splitlines()]
    assert [entry["step"] for entry in history] == steps
    assert all(0 <= entry["score"] <= 1 and entry["tokens"] == 8 for entry in history)
    best = max(history, key=lambda entry: entry["score"])
    of_best = json.loads((Path(best["table"]).parent / "scoring.json").read_text())["identity"]
    assert fingerprint(run.best_by_score) == of_best["checkpoint"]
    assert main(["score-waiting", str(root)]) == 0  # nothing waits: nothing is done
    assert len(run.score_history.read_text().splitlines()) == 2


def test_the_best_is_kept_and_scores_of_other_scenes_do_not_count(tmp_path):
    run = RunDirectory(tmp_path)
    run.checkpoints.mkdir()

    def scored(step, score, tokens=8):
        path = run.waiting_for_score(step)
        path.write_text(str(step))
        figures = {"score": {"mean": score, "low": None, "high": None}}
        summary = {"split": "mini", "tokens": tokens, "failed": [], "score": score}
        return keep(run, Waiting(path, step, ()), summary | {"metrics": figures}, tmp_path)

    assert [scored(1, 0.5), scored(2, 0.4), scored(3, 0.6), scored(4, None)] == [1, 0, 1, 0]
    assert run.best_by_score.read_text() == "3" and run.all_waiting_for_score() == []
    assert scored(5, 0.1, tokens=4)  # another part of the split


def test_a_training_that_has_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(tmp_path))
    assert main(["score-waiting", "123_4"]) == 0
    assert main(["score-waiting", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
