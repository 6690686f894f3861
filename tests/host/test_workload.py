"""What a forecast knows of an agent."""

import json
import math
import os
from pathlib import Path

import pytest

from convoy.host import roofline, speed_model, workload
from convoy.host.roofline import COSTS, UNKNOWN
from convoy.host.speed_model import Observation, Shape, Workload
from convoy.run import cost, story
from convoy.run.cost import Counted

ONE = Shape("h200", 1, 1)
FORK = Counted(54.75, 162.9, 56.0)  # what TransFuser computes, in an agent of another name


def run(root: Path, age: float, **manifest: object) -> None:
    root.mkdir(parents=True)
    (root / "launches.jsonl").write_text(json.dumps({"overrides": ["agent=my_fork"]}) + "\n")
    (root / "config.yaml").write_text("seed: 0\n")
    (root / "manifest.json").write_text(json.dumps(manifest))
    for path in (root, *root.iterdir()):
        os.utime(path, (1e9 - age, 1e9 - age))


def plan(experiments: Path):
    training, _ = workload.read(["agent=my_fork", "global_batch=64"])
    earlier = [story.read(root) for root in story.find(experiments)]
    return workload.counted(training, earlier, experiments)


def test_an_agent_that_was_counted_gets_a_forecast_of_its_own(tmp_path):
    assert plan(tmp_path).counted is None
    run(tmp_path / "train" / "1", age=9, cost={"gflop_forward": 1, "gflop": 3.0, "parameters": 2})
    run(tmp_path / "train" / "2", age=5, cost={"gflop": "none"})  # cut or edited: no number
    assert plan(tmp_path).counted == roofline.counted(3.0, 2.0)
    cost.keep(tmp_path, "my_fork", FORK)  # asked for by name: it comes first
    found = plan(tmp_path)
    assert found.counted == roofline.counted(162.9, 56.0)
    assert not any("is not known" in note for note in workload.notes(found, "given", []))


def test_nobody_has_counted_it(tmp_path):
    notes = workload.notes(plan(tmp_path), "given", [])
    assert any("what a sample of my_fork costs is not known" in note for note in notes)
    seen = Observation(Workload("my_fork", 64), ONE, 100.0)
    assert not any(
        "is not known" in note for note in workload.notes(plan(tmp_path), "given", [seen])
    )


def test_its_rate_is_transfusers_where_it_computes_the_same_and_less_sure():
    measured = speed_model.predict(Workload("transfuser_agent", 64), ONE)
    known = speed_model.predict(Workload("x", 64, counted=roofline.counted(162.9, 56.0)), ONE)
    blind = speed_model.predict(Workload("x", 64), ONE)
    assert known.samples_per_s == pytest.approx(measured.samples_per_s, rel=0.02)
    assert measured.spread < known.spread < blind.spread
    assert known.source == "roofline, operations counted, no earlier run"
    low, high = known.range
    assert low < measured.samples_per_s < high and high / low > 3


@pytest.mark.parametrize("name", COSTS)
def test_what_was_measured_is_not_replaced_by_a_count(name):
    with_count = Workload(name, 64, counted=roofline.counted(1000.0, 500.0))
    assert speed_model.cost_of(with_count) is COSTS[name]
    assert speed_model.cost_of(Workload("x", 64)) is UNKNOWN


def test_a_run_on_another_card_is_scaled_by_what_the_agent_computes():
    """Both sides of the ratio count the same: on the run's own card its rate comes back."""
    seen = [Observation(Workload("x", 64, speed="max"), ONE, 700.0)]
    asked = Workload("x", 64, counted=roofline.counted(162.9, 56.0))
    own = speed_model.predict(asked, ONE, seen)
    assert own.samples_per_s == pytest.approx(700.0)
    other = speed_model.predict(asked, Shape("l40s", 1, 1), seen)
    transfuser = [
        speed_model.predict(Workload("transfuser_agent", 64), Shape(gpu, 1, 1)).samples_per_s
        for gpu in ("l40s", "h200")
    ]
    ratio = math.log(other.samples_per_s / 700.0)
    assert ratio == pytest.approx(math.log(transfuser[0] / transfuser[1]), abs=0.03)
