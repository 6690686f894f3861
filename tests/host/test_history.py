"""What earlier runs teach the next plan."""

import json
import math
from pathlib import Path

import pytest

from convoy.host import history
from convoy.host.history import Check
from convoy.host.speed_model import Rate
from convoy.run import story


def check(actual: float, source: str = "roofline, no earlier run") -> Check:
    return Check("r", "1 x 4 l40s", source, 100.0, 0.5, actual, None, None, None, None)


def test_a_habitual_error_is_taken_out_and_the_range_is_the_one_that_held():
    rate = Rate(200.0, 0.9, "roofline, no earlier run")
    found = history.calibration([check(70), check(75), check(80)], rate.source).apply(rate)
    assert found.samples_per_s == pytest.approx(150.0) and 0.05 <= found.spread < 0.2
    assert found.source.endswith("calibrated on 3 runs")


def test_two_runs_are_too_few_and_other_sources_do_not_count():
    rate = Rate(200.0, 0.9, "roofline, no earlier run")
    others = [check(70, "an earlier run on 4 l40s")] * 5
    assert history.calibration([check(70), check(75), *others], rate.source).apply(rate) is rate


def test_a_range_calibrated_on_scattered_errors_is_wide():
    rate = Rate(100.0, 0.1, "roofline")
    found = history.calibration([check(25), check(100), check(400)], rate.source).apply(rate)
    assert found.spread > math.log(4)


def write(root: Path, **files: object) -> story.Story:
    root.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / name.replace("__", ".")).write_text(text)
    return story.read(root)


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({}, 11.5),
        ({"nodes": 1}, None),  # that is PCIe or NVLink
        ({"backend": "gloo"}, None),  # that is a run on CPUs
        ({"gb_per_s": None}, None),
    ],
)
def test_the_network_between_nodes_is_the_one_of_the_latest_start(tmp_path, changes, measured):
    event = {"kind": "all_reduce", "backend": "nccl", "nodes": 2, "gb_per_s": 11.5, **changes}
    lines = [{**event, "nodes": 2, "backend": "nccl", "gb_per_s": 1.0}, event, {"kind": "finish"}]
    run = write(tmp_path / "exp" / "12", events__jsonl="\n".join(map(json.dumps, lines)))
    assert history.all_reduce_of(run) == measured


def test_a_finished_run_is_an_observation(tmp_path):
    run = write(
        tmp_path / "exp" / "12",
        results__json={"samples_per_s": 80.0, "world_size": 8},
        prediction__json={"gpu": "l40s"},
        launches__jsonl={"nodes": ["a", "b"], "processes_per_node": 4}
        | {"overrides": ["agent=x_agent"]},
        config__yaml="global_batch: 176\ndataloader:\n  params:\n    num_workers: 6\n",
    )
    seen = history.observation(run)
    assert seen is not None and seen.samples_per_s == 80.0
    assert seen.workload.agent == "x_agent" and seen.workload.workers == 6
    assert (seen.shape.gpu, seen.shape.nodes, seen.shape.gpus_per_node) == ("l40s", 2, 4)


def test_a_run_without_a_known_gpu_is_none(tmp_path):
    assert (
        history.observation(write(tmp_path / "exp" / "12", results__json={"samples_per_s": 1}))
        is None
    )
    assert history.observation(write(tmp_path / "exp" / "13")) is None
    assert history.check(story.read(tmp_path / "exp" / "13")) is None


@pytest.mark.parametrize(
    ("name", "short"),
    [("NVIDIA L40S", "l40s"), ("NVIDIA H200", "h200"), ("l40s", "l40s"), ("", "gpu")],
)
def test_gpu_names(name: str, short: str):
    assert history.gpu_name(name) == short
