import json
import subprocess
import sys
from pathlib import Path

import pytest

from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.run.record import Software, commit_of, last_start, record_start
from convoy.topology import Launch

SOFTWARE = Software("sha256:1", "sha256:2", "abc", "def")


@pytest.fixture
def launch() -> Launch:
    return Launch.from_environment({"CUDA_VISIBLE_DEVICES": "0"})


def test_every_start_has_its_line(tmp_path, launch):
    run = RunDirectory(tmp_path / "run")
    assert record_start(run, launch, SOFTWARE, ["agent=a"]) == []
    assert record_start(run, launch, SOFTWARE, ["agent=a"]) == []
    first, second = map(json.loads, run.launches.read_text().splitlines())
    assert first["software"] == {
        "image": "sha256:1",
        "lock": "sha256:2",
        "convoy": "abc",
        "navsim": "def",
    }
    assert first["kind"] == "alone" and first["nodes"] == list(launch.hosts)
    assert second["overrides"] == ["agent=a"] and first["start"] == launch.start


def test_other_software_and_changed_files_are_reported(tmp_path, launch):
    run = RunDirectory(tmp_path)
    record_start(run, launch, SOFTWARE, [])
    other = Software("sha256:9", "sha256:2", "abc", "def")
    notes = record_start(run, launch, other, [], ["/c/slurm/launch.sh"])
    assert notes == [
        "/c/slurm/launch.sh was changed after the job was submitted; this start uses it.",
        "This run continues with other software: image sha256:1 before, sha256:9 now.",
    ]
    assert last_start(run)["changed_since_submission"] == ["/c/slurm/launch.sh"]


def test_a_line_that_a_full_disk_cut_does_no_harm(tmp_path, launch):
    run = RunDirectory(tmp_path)
    record_start(run, launch, SOFTWARE, [])
    with run.launches.open("a") as file:
        file.write('{"start": "1\n[]\n')
    assert last_start(run)["software"]["convoy"] == "abc"


def test_a_directory_that_cannot_be_written(tmp_path, launch):
    (tmp_path / "file").touch()
    with pytest.raises(ConvoyError, match="cannot be written: Not a directory"):
        record_start(RunDirectory(tmp_path / "file/run"), launch, SOFTWARE, [])


FULL = """
import sys
from pathlib import Path
from convoy.errors import ConvoyError
from convoy.launch.preflight import _run_directory
from convoy.run.layout import RunDirectory
from convoy.run.record import Software, record_start
from convoy.topology import Launch
launch = Launch.from_environment({"CUDA_VISIBLE_DEVICES": "0"})
try:
    record_start(RunDirectory(Path(sys.argv[1])), launch, Software(*[None] * 4), [])
    print(*_run_directory(Path(sys.argv[1])))
except ConvoyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("256k", "has no room for the logs of a start (No space left on device). Free some, or"),
        ("4m", "warn no room for 16 MiB: too little for checkpoints, free some"),
    ],
)
def test_a_disk_that_is_full_at_the_start_is_reported_and_makes_no_node_unfit(tmp_path, size, said):
    inside = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-ec"]
    mount = f'mount -t tmpfs -o size={size} none "$0"; exec "$@"'
    if subprocess.run([*inside, mount, tmp_path, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for this user here: sysctl kernel.unprivileged_userns_clone=1")
    command = [*inside, mount, tmp_path, sys.executable, "-c", FULL, tmp_path]
    done = subprocess.run(command, text=True, capture_output=True)
    assert said in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_outside_of_an_image_the_commits_are_the_checkout_s():
    here = Software.here("f00")
    assert here.image is None and here.lock is None and here.navsim == "f00"


def test_an_edited_checkout_is_marked(tmp_path: Path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    assert commit_of(tmp_path) is None
    (tmp_path / "file").write_text("first")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = commit_of(tmp_path)
    assert commit is not None and len(commit) == 40
    (tmp_path / "file").write_text("second")
    assert commit_of(tmp_path) == f"{commit}-edited"
