"""Samples of a node: host memory of the machine or the job's cgroup, GPUs of nvidia-smi."""

import json
import time
from pathlib import Path

from convoy.launch import vitals

GIB = 2**30


def proc(root: Path, cgroup: str) -> Path:
    (root / "self").mkdir(parents=True)
    (root / "self/cgroup").write_text(cgroup)
    (root / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n")
    return root


def test_the_machine_where_no_cgroup_limits(tmp_path):
    found = vitals.host_memory(proc(tmp_path / "proc", "0::/\n"), tmp_path / "cgroup")
    assert found == (2 * GIB, 8 * GIB)


def test_the_jobs_cgroup_of_both_versions(tmp_path):
    for version, controllers, names in (
        ("v2", "0::", ("memory.current", "memory.max", "inactive_file")),
        (
            "v1",
            "4:memory:",
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
        ),
    ):
        root = tmp_path / version / "cgroup"
        job = (root if version == "v2" else root / "memory") / "slurm" / "job_1"
        (job / "step").mkdir(parents=True)
        for folder, limit in (
            (job, str(4 * GIB)),
            (job / "step", "max" if version == "v2" else str(2**63)),
        ):
            (folder / names[0]).write_text(str(3 * GIB))
            (folder / names[1]).write_text(limit)
            (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {GIB}\n")
        process = proc(tmp_path / version / "proc", f"{controllers}/slurm/job_1/step\n")
        assert vitals.host_memory(process, root) == (2 * GIB, 4 * GIB), version


def test_nvidia_smi():
    text = (
        "0, 97, 30123, 46068, 301.25, NVIDIA L40S\n"
        "1, [N/A], 0, 46068, 30.00, NVIDIA L40S\n"
        "2, 5, 10, 46068, [N/A], NVIDIA L40S\n"
        "no devices\n"
    )
    known = {"busy": 97, "memory": 30123, "memory_total": 46068, "name": "NVIDIA L40S"}
    assert vitals.parse_gpus(text) == [
        {"index": 0, "power": 301.25} | known,
        {"index": 2} | known | {"busy": 5, "memory": 10},  # a card that gives no power
    ]


def test_a_thread_samples_and_ends(tmp_path):
    path = tmp_path / "vitals" / "host.jsonl"
    with vitals.sampled(path, interval=0.05):
        deadline = time.monotonic() + 10
        while not path.exists() or len(path.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    assert 0 < first["memory"] < first["memory_limit"] and isinstance(first["gpus"], list)
    time.sleep(0.2)
    assert len(path.read_text().splitlines()) <= len(lines) + 1


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    with vitals.sampled(tmp_path / "file" / "host.jsonl", interval=0.01):
        time.sleep(0.05)
