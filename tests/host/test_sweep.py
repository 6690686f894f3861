"""A sweep's folder: what is asked of sbatch, what a task reads, what is taken up again."""

import json
import subprocess
from pathlib import Path

import pytest

from convoy.errors import ConvoyError
from convoy.host import sweep

FOUND = [
    {"name": f"seed={seed}", "chosen": {"seed=0,1,2,3,4": f"seed={seed}"}} for seed in range(5)
]
TYPED = ["agent=a", "seed=0,1,2,3,4"]


def make(root: Path, found=FOUND, concurrency=2) -> sweep.Sweep:
    return sweep.build(root, TYPED, 1, {"time": "1:00:00"}, concurrency, found)


def test_the_folder_gives_back_what_was_asked_for(tmp_path):
    made = sweep.save(make(tmp_path / "s"))
    assert made == sweep.load(tmp_path / "s") == make(tmp_path / "s")
    assert made.points[3].overrides[:2] == ("agent=a", "seed=3")
    assert made.points[3].values == {"seed": "3"}


@pytest.mark.parametrize(
    ("numbers", "concurrency", "array"),
    [((0, 1, 2, 3, 4), 2, "0-4%2"), ((1, 3, 4), None, "1,3-4"), ((2,), 1, "2%1")],
)
def test_the_array_has_the_points_under_their_own_numbers(tmp_path, numbers, concurrency, array):
    made = make(tmp_path, concurrency=concurrency)
    assert made.array([made.points[number] for number in numbers]) == array


def test_a_task_reads_its_words_as_they_are(tmp_path):
    """As slurm/launch.sh does, whatever is in a word."""
    odd = {"name": "x=a_b", "chosen": {"x='a $b','c'": "x='a $b'"}}
    root = tmp_path / "it's one"
    made = sweep.save(sweep.build(root, ["x='a $b','c'", "y=\\*"], 1, {}, None, [odd]))
    launch = (Path(__file__).parents[2] / "slurm" / "launch.sh").read_text()
    read = next(line.strip() for line in launch.splitlines() if "mapfile -t point" in line)
    said = subprocess.run(
        ["bash", "-euc", read + '; printf "%s\\n" "${point[@]}"', "bash", f"--sweep={root}"],
        env={"SLURM_ARRAY_TASK_ID": "0"},
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert said.splitlines() == list(made.points[0].overrides)
    from hydra.core.override_parser.overrides_parser import OverridesParser

    place = OverridesParser.create().parse_override(made.points[0].overrides[-1])
    assert (place.key_or_group, place.value()) == ("run_dir", str(root / "x=a_b"))


def test_the_same_arguments_in_any_order_have_the_same_folder(tmp_path):
    one = sweep.default_root(tmp_path, ["agent=a", "seed=0,1"])
    assert one == sweep.default_root(tmp_path, ["seed=0,1", "agent=a"])
    assert one != sweep.default_root(tmp_path, ["seed=0,2", "agent=a"])
    named = sweep.default_root(tmp_path, ["experiment_name=mine", "seed=0,1"])
    assert named.name.startswith("mine-")


def test_another_sweep_is_not_written_over(tmp_path):
    sweep.save(make(tmp_path))
    sweep.save(make(tmp_path, found=FOUND[::-1]))  # a shuffled choice: the same points
    assert [point.name for point in sweep.load(tmp_path).points] == [p["name"] for p in FOUND]
    with pytest.raises(ConvoyError, match="is a sweep of other points"):
        sweep.save(make(tmp_path, found=FOUND[:3]))
    with pytest.raises(ConvoyError, match="is not a sweep"):
        sweep.load(tmp_path / "seed=0")


def test_the_newest_task_of_a_point_counts(tmp_path):
    made = sweep.save(make(tmp_path))
    sweep.record(made, "12", made.points, sweep.LOG)
    sweep.record(made, "15", [made.points[1]], "/logs/%A_%a.log")
    with made.files.submissions.open("a") as file:
        file.write('{"time": 1, "jo')  # cut by a full disk
    found = sweep.tasks(made)
    assert (found[0].id, found[0].log) == ("12_0", Path.cwd() / "convoy-12_0.log")
    assert (found[1].id, found[1].log) == ("15_1", Path("/logs/15_1.log"))
    assert json.loads(made.files.definition.read_text())["concurrency"] == 2
