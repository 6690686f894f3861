import random
from pathlib import Path

import pytest

from convoy.data.prepare.plan import share
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.run.score_layout import ScoreDirectory, baseline_of, scoring_of_run
from convoy.scoring.plan import SCENES_PER_UNIT, Unit, _parts, open_plan


def navtest():
    """As many logs and scenes as navtest has, unevenly spread."""
    generator = random.Random(0)
    counts = [generator.randint(5, 170) for _ in range(136)]
    return [
        unit
        for log, count in enumerate(counts)
        for unit in _parts(f"log-{log}", [f"{log}-{n}" for n in range(count)])
    ]


@pytest.mark.parametrize("tasks", [1, 2, 4, 16])
def test_tasks_get_equal_shares_of_all_scenes(tasks):
    units = navtest()
    shares = [share(units, list(range(len(units))), task, tasks) for task in range(tasks)]
    assert sorted(number for mine in shares for number in mine) == list(range(len(units)))
    scenes = [sum(units[number].weight for number in mine) for mine in shares]
    assert max(scenes) <= 1.05 * min(scenes)


def test_a_log_is_cut_into_nearly_equal_units():
    units = _parts("log", [str(n) for n in range(2 * SCENES_PER_UNIT + 1)])
    assert [unit.weight for unit in units] == [11, 11, 11]
    assert [unit.name for unit in units] == sorted({unit.name for unit in units})
    assert [token for unit in units for token in unit.tokens] == [str(n) for n in range(33)]
    assert _parts("log", []) == []


def test_a_plan_is_written_once(tmp_path):
    directory = ScoreDirectory(tmp_path)
    units = [Unit("log", 0, ("a", "b")), Unit("log", 0, ("c",), ("/c.pkl",))]
    plan = open_plan(directory, {"split": "navtest"}, lambda: units)
    assert plan.units == tuple(units) and plan.tokens == 3 and plan.log_of["c"] == "log"
    assert len({unit.name for unit in plan.units}) == 2
    again = open_plan(directory, {"split": "navtest"}, lambda: pytest.fail("it is listed"))
    assert again == plan
    with pytest.raises(ConvoyError, match='another scoring: split: "navtest" -> "navmini"'):
        open_plan(directory, {"split": "navmini"}, list)


def test_a_damaged_plan_is_named(tmp_path):
    (tmp_path / "scoring.json").write_text('{"version": 1, "units": [')
    with pytest.raises(ConvoyError, match=r"scoring.json is damaged"):
        open_plan(ScoreDirectory(tmp_path), {}, list)


def test_where_scores_lie():
    run = RunDirectory(Path("/runs/1"))
    assert scoring_of_run(run, "navtest", "step-000000010").table == Path(
        "/runs/1/scores/navtest/step-000000010/scores.csv"
    )
    one, other = (baseline_of(Path("/cache"), "human_agent", {"split": s}) for s in ("a", "b"))
    assert one != other and one.root.parent == Path("/cache/baselines")
