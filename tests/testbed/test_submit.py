"""`convoy submit` on a real SLURM: it reports what would fail after queueing and queues nothing."""

import json
from dataclasses import asdict

import pytest

from convoy.run.progress import RunProgress

SHORT = (
    "agent=bev_fusion_agent",
    "cache_path=/scratch/cache",
    "+trainer.params.max_steps=1",
    "dataloader.params.num_workers=0",
    "global_batch=16",
)


@pytest.fixture
def submit(testbed):
    def run(*arguments, environment=None):
        variables = {"PYTHONPATH": "src", "CONVOY_IMAGE": str(testbed.image), **(environment or {})}
        named = [f"{name}={value}" for name, value in variables.items()]
        return testbed.run(
            "env", *named, "python3", "-m", "convoy.commands.__main__", "submit", *arguments
        )

    return run


def queued(testbed) -> str:
    return testbed.run("squeue", "--noheader").out


@pytest.mark.parametrize(
    ("options", "overrides", "environment", "message"),
    [
        (
            (),
            (),
            {"CONVOY_IMAGE": "/scratch/gone.sif"},
            "There is no image /scratch/gone.sif",
        ),
        ((), ("cache_path=/scratch/gone",), {}, "cache_path=/scratch/gone is not a directory"),
        (
            (),
            ("trainer.params.max_epoch=3",),
            {},
            "There is no setting 'trainer.params.max_epoch'. Nearest",
        ),
        ((), ("global_batch=12",), {}, "global_batch=12 cannot be split over world size 8"),
        (
            (),
            ("trainer.params.num_nodes=4",),
            {},
            "trainer.params.num_nodes=4 contradicts the launch, which has 2",
        ),
        (
            ("--time=3-00:00:00",),
            (),
            {},
            "--time=3-00:00:00 is over the limit of partition l40s_public, 2-00:00:00",
        ),
        (
            ("--estimate=20:00:00",),
            (),
            {},
            "The time limit 12:00:00 is shorter than --estimate (20.0 h)",
        ),
        (
            ("--partition=nowhere",),
            (),
            {},
            "There is no partition 'nowhere'. This cluster has: h200, l40s_public.",
        ),
        (("--nodes=16",), (), {}, "--nodes=16, and partition l40s_public has 4 node(s) in all"),
        ((), (), {"NAVSIM_EXP_ROOT": "/proc/exp"}, "NAVSIM_EXP_ROOT=/proc/exp cannot be"),
        (("--time=soon",), (), {}, "--time=soon is not a time that SLURM knows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_is_told_before_it_queues(testbed, submit, options, overrides, environment, message):
    done = submit("--nodes=2", *options, "--", *SHORT, *overrides, environment=environment)
    assert done.code == 1
    assert done.out.startswith(f"convoy: {message}"), done.out
    assert len(done.out.splitlines()) == 1
    assert queued(testbed) == ""


def test_a_run_that_cannot_be_gone_on_with(testbed, submit):
    """The run directory belongs to another configuration, or says itself that the time will not
    do."""
    folder = "/scratch/submitted"
    progress = RunProgress("1-0", 40, 400, 3, 1.0, 9.1, 108000.0, 1e9)
    said = json.dumps(asdict(progress))
    files = (
        f"mkdir -p {folder}; printf 'seed: 7\\nrun_dir: x\\n' > {folder}/config.yaml; "
        f"echo '{said}' > {folder}/progress.json"
    )
    made = testbed.run("bash", "-c", files)
    assert made.code == 0
    other = submit("--", *SHORT, f"run_dir={folder}")
    assert other.code == 1 and "belongs to another configuration" in other.out, other.out
    assert testbed.run("rm", f"{folder}/config.yaml").code == 0
    late = submit("--", *SHORT, f"run_dir={folder}")
    assert late.code == 1
    assert (
        "The time limit 12:00:00 is shorter than the run's own estimate at step 40 (30.0 h)"
        in late.out
    )
    assert queued(testbed) == ""


def test_a_dry_run_is_a_text_that_sbatch_accepts(testbed, submit):
    arguments = (
        "--nodes=3",
        "--partition=h200",
        "--dry-run",
        "--",
        *SHORT[:3],
        "global_batch=24",
        "+note='a $b'",
    )
    done = submit(*arguments)
    assert done.code == 0, done.out
    assert "sbatch --nodes=3 --partition=h200 " in done.out
    assert f"image {testbed.image}\n" in done.out
    assert "#SBATCH --nodes=3\n" in done.out and "#SBATCH --partition=h200\n" in done.out
    piped = (
        'PYTHONPATH=src python3 -m convoy.commands submit "$@" 2> /dev/null | sbatch --test-only'
    )
    tested = testbed.run(
        "env", f"CONVOY_IMAGE={testbed.image}", "bash", "-c", piped, "bash", *arguments
    )
    assert tested.code == 0 and "to start at" in tested.out, tested.out
    assert queued(testbed) == ""


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(submit):
    """Each of the three names a partition; the one that counts is named in the error, since none of
    them exists."""
    environment = {"SBATCH_PARTITION": "by_environment"}
    by_all = submit("--partition=by_option", "--", *SHORT, environment=environment)
    assert "There is no partition 'by_option'" in by_all.out
    assert (
        "There is no partition 'by_environment'"
        in submit("--", *SHORT, environment=environment).out
    )


def test_it_submits_and_the_run_records_the_images_digest(testbed, submit):
    options = (
        "--gpus-per-node=1",
        "--sbatch=cpus-per-task=8",
        "--sbatch=mem=20G",
        "--sbatch=output=/scratch/job-%j.log",
    )
    done = submit(*options, "--", *SHORT)
    assert done.code == 0, done.out
    command, submitted = done.out.splitlines()
    assert command.startswith(
        "sbatch --gpus-per-node=1 --cpus-per-task=8 --mem=20G"
    ) and command.endswith(" ".join(SHORT))
    job = testbed.wait(submitted.removeprefix("Submitted batch job "))
    assert job.code == 0, job.log
    launched = json.loads(testbed.read(f"/scratch/exp/train/{job.id}/launches.jsonl"))
    built = testbed.run("apptainer", "exec", str(testbed.image), "convoy", "image", "manifest")
    manifest = json.loads(built.out)
    assert launched["software"] == {
        "image": manifest["digest"],
        "lock": manifest["lock"],
        "convoy": manifest["commit"],
        "navsim": manifest["sources"]["navsim"],
    }
    assert launched["kind"] == "job" and launched["start"] == f"{job.id}-0"
    assert launched["overrides"][-len(SHORT) :] == list(SHORT)
