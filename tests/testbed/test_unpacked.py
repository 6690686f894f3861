"""An image that is unpacked on the nodes' own disks."""

import json
import re
import sys
from pathlib import Path

import pytest

DISK = "/var/tmp/images"
PAIR = "--nodelist=gl001,gl006"


@pytest.fixture(scope="module")
def watched():
    folder = str(Path(__file__).parents[2] / "testbed")
    sys.path.insert(0, folder)
    try:
        import watched
    finally:
        sys.path.remove(folder)
    return watched


def log_of(testbed, job):
    return testbed.run("cat", f"/scratch/chaos-{job}.log").out


def test_a_cancelled_job_saves_its_last_step_and_the_next_one_finds_the_image(testbed, watched):
    """SLURM's SIGTERM ends the process behind a mounted image, and with it the ranks: not here."""
    bed = watched.Testbed(testbed.name, testbed.image, environment={"CONVOY_UNPACK": DISK})
    bed.in_image("python", f"{watched.FORK}/chaos_cache.py", watched.CACHE)
    run_dir = "/scratch/unpacked"
    first = watched.Training(bed, bed.submit(run_dir, PAIR), run_dir)
    first.wait_for_step(20)
    bed.run("scancel", first.job)
    first.wait(lambda: not bed.state(first.job), "the cancelled job did not end")
    log = log_of(testbed, first.job)
    assert len(re.findall(r"the image is unpacked on gl\d+ after \d+ s", log)) == 2, log
    events = [json.loads(line) for line in testbed.read(f"{run_dir}/events.jsonl").splitlines()]
    saved = max(entry["step"] for entry in events if entry["kind"] == "checkpoint")
    assert saved == first.steps()[-1][1], log

    second = watched.Training(bed, bed.submit(run_dir, PAIR), run_dir)
    second.wait_for_the_end()
    assert second.consumed() is None
    assert "the image is unpacked" not in log_of(testbed, second.job)
    testbed.assert_nothing_left()


def test_without_room_the_image_stays_mounted_and_the_job_says_why(testbed, watched):
    bed = watched.Testbed(testbed.name, testbed.image, environment={"CONVOY_UNPACK": "/small"})
    bed.in_image("python", f"{watched.FORK}/chaos_cache.py", watched.CACHE)
    run_dir = "/scratch/mounted"
    job = watched.Training(bed, bed.submit(run_dir, PAIR), run_dir)
    job.wait_for_the_end()
    log = log_of(testbed, job.job)
    assert "CONVOY_UNPACK: the unpacked image needs" in log and "are free" in log
    assert len(re.findall(r"the image stays mounted on gl\d+", log)) == 2, log
