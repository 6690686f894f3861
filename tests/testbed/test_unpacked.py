"""An image that is unpacked on the nodes' own disks."""

import json
import re
import sys
from pathlib import Path

import pytest

DISK = "/var/tmp/images"
PAIR = ("--nodelist=gl001,gl006",)
STEPS = 120


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
    bed.make_cache()
    training = watched.Training(bed, STEPS, PAIR)
    first = training.job = training.submit()
    training.wait_for_step(20)
    bed.run("scancel", first)
    training.wait(lambda: not bed.state(first), "the cancelled job did not end", over=True)
    log = log_of(testbed, first)
    assert len(re.findall(r"the image is unpacked on gl\d+ after \d+ s", log)) == 2, log
    events = testbed.read(f"{training.run_dir}/events.jsonl").splitlines()
    entries = [json.loads(line) for line in events]
    saved = max(entry["step"] for entry in entries if entry["kind"] == "checkpoint")
    assert saved == training.newest().step + 1, log  # that one began when `step` were done

    second = training.job = training.submit()
    training.wait_for_the_end()
    steps = training.taken()
    assert watched.taken.left_out(steps) is None
    assert watched.taken.once(steps, STEPS, watched.STEPS_PER_EPOCH, watched.SAMPLES) is None
    assert "the image is unpacked" not in log_of(testbed, second)
    testbed.assert_nothing_left()


def test_without_room_the_image_stays_mounted_and_the_job_says_why(testbed, watched):
    bed = watched.Testbed(testbed.name, testbed.image, environment={"CONVOY_UNPACK": "/small"})
    bed.make_cache()
    training = watched.Training(bed, STEPS, PAIR)
    training.job = training.submit()
    training.wait_for_the_end()
    log = log_of(testbed, training.job)
    assert "CONVOY_UNPACK: the unpacked image needs" in log and "are free" in log
    assert len(re.findall(r"the image stays mounted on gl\d+", log)) == 2, log
