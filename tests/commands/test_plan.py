"""`convoy plan` as a person and a script use it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTES = ROOT / "tests/host/notes.toml"
GOLDEN = Path(__file__).with_name("plan.golden")
TRAINING = (
    "agent=vit",
    "global_batch=176",
    "dataloader.params.batch_size=22",
    "trainer.params.max_epochs=40",
)


def convoy(exp: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NAVSIM_EXP_ROOT": str(exp), "COLUMNS": "160", **variables}
    environment.pop("CONVOY_SITE", None)
    return subprocess.run(
        [sys.executable, "-m", "convoy.commands", *arguments],
        env=environment,
        text=True,
        capture_output=True,
        cwd=ROOT,
    )


def test_the_table(tmp_path):
    done = convoy(tmp_path, "plan", "--cluster", str(NOTES), "--", *TRAINING)
    assert done.returncode == 0, done.stderr
    shown = "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"
    assert shown == GOLDEN.read_text(), f"if this is meant, write it to {GOLDEN}:\n{shown}"


@pytest.mark.parametrize("json_too", [False, True])
def test_on_a_bare_python(tmp_path, json_too):
    """Without rich, on a login node: JSON as ever, and a sentence instead of a table."""
    words = ["plan", "--cluster", str(NOTES), *(["--json"] if json_too else []), "--", *TRAINING]
    code = "import sys; sys.modules['rich'] = None; from convoy.commands.__main__ import main; "
    environment = {**os.environ, "NAVSIM_EXP_ROOT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main({words!r}))"],
        env=environment,
        text=True,
        capture_output=True,
        cwd=ROOT,
    )
    if json_too:
        assert done.returncode == 0 and json.loads(done.stdout)["rows"]
    else:
        assert done.returncode == 1 and done.stderr.startswith("convoy: Tables and bars need")


def test_json_and_aim(tmp_path):
    arguments = ("plan", "--cluster", str(NOTES), "--json", "--aim", "cheapest", "--", *TRAINING)
    content = json.loads(convoy(tmp_path, *arguments).stdout)
    best = content["rows"][content["recommended"] - 1]
    possible = [row for row in content["rows"] if row["possible"]]
    assert round(best["gpu_hours"], 1) == min(round(row["gpu_hours"], 1) for row in possible)
    assert best["command"].startswith("convoy submit --nodes 1 ")
    only = convoy(tmp_path, *arguments[:4], "--partition", "h200", *arguments[4:])
    assert {row["offer"]["partition"] for row in json.loads(only.stdout)["rows"]} == {"h200"}
    assert best["command"].endswith(" ".join(TRAINING))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cluster", "/nowhere.toml"), "--cluster /nowhere.toml cannot be read: No such file"),
        (("--cluster", str(NOTES), "--nodes", "0"), "--nodes 0: give numbers of nodes"),
        (("--cluster", str(NOTES), "--partition", "x"), "There is no partition 'x'. This cluster"),
        (("--cluster", str(NOTES), "--submit", "1"), "--submit goes to the live cluster"),
        (("--cluster", str(NOTES), "--", "global_batch=x"), "global_batch=x must be a whole"),
        (("--cluster", str(NOTES), "--", "trainer.params.max_epochs=0"), "of at least 1"),
    ],
)
def test_mistakes(tmp_path, arguments, said):
    done = convoy(tmp_path, "plan", *arguments)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "is not valid toml"),
        ("[[partition]]\nname = 'p'", "'nodes' is missing"),
        ("[[partition]]\nname = 'p'\nspeed = 3", "partition has no 'speed'"),
        ("[[job]]", "'partition' is missing"),
        ("[[partition]]\nname='p'\n[[nodes]]\nnames='a'\npartitions=['q']\ngpus=4", "'q', which"),
    ],
)
def test_files_that_describe_no_cluster(tmp_path, text, said):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    done = convoy(tmp_path, "plan", "--cluster", str(path))
    assert done.returncode == 1 and said in done.stderr, done.stderr


def test_500_nodes_and_20_000_queued_jobs_take_under_two_seconds(tmp_path):
    kinds = (("l40s", 400, 4), ("h200", 100, 8))
    nodes = [
        {"names": f"{gpu}[001-{count}]", "partitions": [gpu, "all"], "gpu": gpu, "gpus": gpus}
        | {"cpus": 128, "memory_gib": 1000, "state": "allocated"}
        for gpu, count, gpus in kinds
    ]
    running = [
        {"partition": gpu, "state": "running", "gpus": gpus, "limit": 86400, "left": 300 * number}
        for gpu, count, gpus in kinds
        for number in range(count)
    ]
    waiting = [
        {"partition": ("l40s", "h200", "all")[number % 3], "nodes": 1 + number % 4}
        | {
            "gpus": (1, 2, 8, 16)[number % 4],
            "limit": 3600 + number,
            "priority": number * 7919 % 10007,
        }
        for number in range(20_000)
    ]
    path = tmp_path / "large.json"
    partitions = [{"name": name, "limit": 172_800} for name in ("l40s", "h200", "all")]
    path.write_text(json.dumps({"partition": partitions, "nodes": nodes, "job": running + waiting}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = convoy(tmp_path, "plan", "--cluster", str(path), "--", *TRAINING)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # CPU time: neighbours on the machine do not count, and nothing is waited for.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_history_is_beside_what_happened(tmp_path):
    run = tmp_path / "first" / "12"
    run.mkdir(parents=True)
    prediction = {
        "time": 1000.0,
        "gpu": "l40s",
        "nodes": 2,
        "gpus_per_node": 4,
        "samples_per_s": 100.0,
        "spread": 0.5,
        "source": "roofline, no earlier run",
        "wait_s": [0, 60, 180],
        "total_s": [3000, 4000, 5000],
    }
    (run / "prediction.json").write_text(json.dumps(prediction))
    (run / "config.yaml").write_text("global_batch: 176\n")
    (run / "launches.jsonl").write_text(json.dumps({"time": 1090.0, "job": "12"}) + "\n")
    (run / "results.json").write_text(json.dumps({"samples_per_s": 80.0, "world_size": 8}))
    (run / "progress.json").write_text(json.dumps({"time": 6000.0}))
    shown = convoy(tmp_path, "plan", "--history").stdout
    assert "first/12" in shown and "-20%" in shown and "83 min" in shown
    assert "1 of 1 measured rates were in their predicted range" in shown
    found = json.loads(convoy(tmp_path, "plan", "--history", "--json").stdout)[0]
    assert found["actual_wait"] == 90.0 and found["actual_total"] == 5000.0
