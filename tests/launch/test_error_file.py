import json
import resource
import subprocess
import sys

import pytest

from convoy.launch import error_file
from convoy.launch.verdict import Failure

FAILURE = Failure(1, "gl006", 2.5, 1, "No space left: free some, 'please'", True)


def test_torchrun_hands_on_what_a_rank_could_not_write_to_its_run(tmp_path):
    """torchrun's own reader and writer; the rank is a process, as it is under torchrun."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "error.json"
    leave = (
        "from convoy.launch import error_file; from convoy.launch.verdict import Failure; "
        f"error_file.leave({FAILURE!r})"
    )
    subprocess.run(
        [sys.executable, "-c", leave], env={"TORCHELASTIC_ERROR_FILE": str(file)}, check=True
    )
    read = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(file))
    assert error_file.find(read.error_file_data["message"]) == FAILURE


@pytest.mark.parametrize("message", ["<NONE>", None, {"message": "ValueError: x"}, {}])
def test_what_torchrun_itself_says_is_no_record(message):
    assert error_file.find(message) is None


def test_a_failure_that_finds_no_room_leaves_no_torn_record(tmp_path):
    from convoy.launch import verdict
    from convoy.run.layout import RunDirectory

    run = RunDirectory(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError):
            verdict.write(run, "7-0", FAILURE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(run.failures("7-0").iterdir()) == []
    verdict.write(run, "7-0", FAILURE)
    assert json.loads(run.failure("7-0", 1).read_text())["host"] == "gl006"
