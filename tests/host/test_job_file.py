from pathlib import Path

import pytest

from convoy.errors import ConvoyError
from convoy.host import job_file

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("submission.golden")
HOSTILE = [
    "agent=transfuser_agent",
    "+note='a b'",
    "x=$HOME",
    'y="q"',
    "logs=[a,b]",
    "z=first\nsecond",
]


def test_the_text_that_sbatch_gets():
    file = job_file.choose(ROOT, 2)
    options = {"nodes": "2", "partition": "h200", "time": "1-00:00:00", "constraint": "l40s"}
    text = job_file.render(file.read_text(), options, Path("/convoy"), HOSTILE)
    assert text == GOLDEN.read_text(), f"if this is meant, write it to {GOLDEN}:\n{text}"


def test_any_number_of_nodes_has_a_file():
    names = {nodes: job_file.choose(ROOT, nodes).name for nodes in (1, 2, 3, 4, 16)}
    assert names == {
        1: "torchrun_1node.slurm",
        2: "torchrun_2node.slurm",
        3: "torchrun_1node.slurm",
        4: "torchrun_4node.slurm",
        16: "torchrun_1node.slurm",
    }


def test_a_job_that_may_continue_on_fewer_nodes():
    file = job_file.choose(ROOT, 2)
    options = job_file.elastic({"nodes": "2"}, 2, 1)
    assert job_file.command(file, options, []) == [
        "sbatch",
        "--no-kill",
        "--export=ALL,CONVOY_MIN_NODES=1",
        str(file),
    ]
    text = job_file.render(file.read_text(), options, Path("/convoy"), [])
    assert "\n#SBATCH --no-kill\n#SBATCH --export=ALL,CONVOY_MIN_NODES=1\n" in text
    named = job_file.elastic({"export": "NONE,A=1"}, 2, 2)
    assert named["export"] == "NONE,A=1,CONVOY_MIN_NODES=2"
    for wrong in (0, 3):
        with pytest.raises(ConvoyError, match=f"--min-nodes={wrong} must be from 1 to 2"):
            job_file.elastic({}, 2, wrong)


def test_only_what_differs_from_the_file_stands_in_the_command():
    file = job_file.choose(ROOT, 3)
    command = job_file.command(
        file, {"nodes": "3", "partition": "l40s_public", "account": "other"}, ["a=b c"]
    )
    assert command == ["sbatch", "--nodes=3", "--account=other", str(file), "a=b c"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("12:00:00", 43200),
        ("1-0", 86400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
    ],
)
def test_slurms_notations_of_a_time(text, seconds):
    assert job_file.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "12h", "1-", "1:2:3:4", "-5"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError):
        job_file.seconds(text)
