import resource
import subprocess
import sys

from convoy.run.events import read, record
from convoy.run.layout import RunDirectory


def test_a_line_per_event_in_order(tmp_path):
    run = RunDirectory(tmp_path)
    assert read(run) == []
    record(run, "start", world_size=4)
    record(run, "checkpoint", step=7)
    found = read(run)
    assert [(event["kind"], event.get("step")) for event in found] == [
        ("start", None),
        ("checkpoint", 7),
    ]
    assert found[0]["time"] <= found[1]["time"] and found[0]["host"]


def test_a_cut_line_costs_only_itself(tmp_path):
    run = RunDirectory(tmp_path)
    record(run, "start")
    with run.events.open("a") as file:
        file.write('{"time": 1, "kind": "che')
    record(run, "stop")
    assert [event["kind"] for event in read(run)] == ["start", "stop"]


def test_a_full_disk_ends_nothing(tmp_path):
    run = RunDirectory(tmp_path)
    record(run, "start")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.events.stat().st_size + 5, before[1]))
    try:
        record(run, "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    record(run, "stop")
    assert [event["kind"] for event in read(run)] == ["start", "stop"]


def test_many_writers_lose_nothing(tmp_path):
    program = """
import sys
from pathlib import Path
from convoy.run.events import record
from convoy.run.layout import RunDirectory
for number in range(50):
    record(RunDirectory(Path(sys.argv[1])), "step", who=sys.argv[2], number=number)
"""
    many = [subprocess.Popen([sys.executable, "-c", program, tmp_path, who]) for who in "abc"]
    assert [process.wait() for process in many] == [0, 0, 0]
    found = {(event["who"], event["number"]) for event in read(RunDirectory(tmp_path))}
    assert len(found) == 150
