"""What differs between runs, and what a rerun would not repeat."""

import json
import shutil
from pathlib import Path

import pytest

from convoy.run import comparison, story


@pytest.fixture
def pair(preempted_run: Path) -> tuple[Path, Path]:
    other = preempted_run.parents[1] / "second" / "13"
    shutil.copytree(preempted_run, other)
    return preempted_run, other


def facts(first: Path, second: Path) -> dict[tuple[str, str], tuple[str, str]]:
    found = comparison.differences(story.read(first), story.read(second))
    return {(one.part, one.name): (one.first, one.second) for one in found}


def test_equal_runs(pair):
    assert facts(*pair) == {}


def test_what_differs(pair):
    first, second = pair
    text = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(text.replace("batch_size: 22", "batch_size: 44"))
    launch = json.loads((second / "launches.jsonl").read_text().splitlines()[-1])
    launch |= {"time": "2026-02-02T00:00:00+00:00", "nodes": ["h1"], "job": "13"}
    launch["software"]["navsim"] = "other"
    (second / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    (second / "results.json").write_text(json.dumps({"ade": 1.5}))
    (second / "manifest.json").write_text(json.dumps({"written": "x", "data": {"path": "/d"}}))
    assert facts(first, second) == {
        ("configuration", "dataloader.params.batch_size"): ("22", "44"),
        ("start", "software.navsim"): ("0a380a9", "other"),
        ("start", "number of nodes"): ("2", "1"),
        ("manifest", "data.path"): ("-", "/d"),
        ("results", "ade"): ("-", "1.5"),
    }


def test_what_a_rerun_does_not_repeat(preempted_run):
    run = story.read(preempted_run)
    said = list(comparison.not_repeatable(run, {"convoy": "other", "navsim": "0a380a9"}))
    assert said == [
        "convoy was 0a1b2c and is other now",
        "deterministic operators were not asked for: equal runs differ in the last digits",
    ]
    lines = [
        json.loads(line) for line in (preempted_run / "launches.jsonl").read_text().splitlines()
    ]
    lines[0]["nodes"], lines[2]["software"] = ["a"], {"convoy": "0a1b2c-edited", "image": None}
    (preempted_run / "launches.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = " ".join(comparison.not_repeatable(story.read(preempted_run), {}))
    for part in ("files differed from their commit", "outside of an image", "different numbers of"):
        assert part in said
