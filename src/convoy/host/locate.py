"""From what a person types (a job's id, a run's folder, nothing) to job and run."""

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.host import cluster
from convoy.host.cluster import SlurmUnavailable
from convoy.host.cluster_model import Job
from convoy.run import story
from convoy.run.layout import RunDirectory

OTHER_JOBS = ("convoy-prepare", "convoy-score")  # names of jobs that train nothing


@dataclass(frozen=True)
class Found:
    """`root` is None for a job that has not started; `job` None where SLURM knows it no longer."""

    id: str | None
    job: Job | None
    root: Path | None
    slurm: str = ""  # why SLURM did not answer


def find(target: str | None, experiments: Path) -> Found:
    """Raises ConvoyError where nothing fits."""
    queue, problem = own_jobs()
    if target is None:
        return _newest(queue, experiments, problem)
    path = Path(target)
    if path.is_dir():
        job = job_of(path)
        return Found(job, _job(queue, job), path.absolute(), problem)
    tasks = _tasks(queue, target)
    if tasks:
        raise ConvoyError(
            f"Job {target} is an array: name one of its tasks in the queue, "
            f"{' or '.join(dict.fromkeys((tasks[0].id, tasks[-1].id)))}, say. convoy sweep shows "
            "them all."
        )
    root = run_of(target, experiments)
    known = _job(queue, target)
    if known is None and not problem and target.partition("_")[0].isdigit():
        try:  # somebody else's job, or one that ended a moment ago
            known = next(iter(cluster.jobs(f"--jobs={target}")), None)
        except SlurmUnavailable:
            known = None
    if known is None and root is None:
        because = f" ({problem})" if problem else ""
        raise ConvoyError(
            f"There is no job {target} in the queue and no run of it below {experiments}{because}. "
            "Give a job id or a run directory; convoy list shows both."
        )
    return Found(target, known, root, problem)


def find_all(target: str, experiments: Path) -> list[Found]:
    """The tasks of an array that are in the queue, else what `find` finds."""
    queue, _ = own_jobs()
    tasks = _tasks(queue, target)
    if not tasks:
        return [find(target, experiments)]
    return [Found(task.id, task, run_of(task.id, experiments)) for task in tasks]


def own_jobs() -> tuple[list[Job], str]:
    """This user's jobs, and why SLURM did not answer if it did not."""
    try:
        return cluster.jobs(f"--user={getpass.getuser()}"), ""
    except SlurmUnavailable as error:
        return [], str(error)


def _newest(queue: Sequence[Job], experiments: Path, problem: str) -> Found:
    order = {"RUNNING": 0, "COMPLETING": 1, "CONFIGURING": 2}
    for job in sorted(queue, key=lambda job: (order.get(job.state, 3), -_number(job.id))):
        root = run_of(job.id, experiments)
        is_training = job.name.startswith("convoy") and job.name not in OTHER_JOBS
        if root is not None or is_training:
            return Found(job.id, job, root, problem)
    roots = story.find(experiments)
    if not roots:
        because = f" ({problem})" if problem else ""
        raise ConvoyError(
            f"No job of yours is queued{because}, and there is no run below {experiments}. "
            "NAVSIM_EXP_ROOT names another folder."
        )
    return Found(job_of(roots[0]), None, roots[0], problem)


def run_of(job: str, experiments: Path) -> Path | None:
    """The run directory of a job: named by it, else the one with a start of it."""
    named = [path for path in experiments.glob(f"*/{job}") if path.is_dir()]
    if named:
        return max(named, key=lambda path: path.stat().st_mtime)
    for root in story.find(experiments)[:100]:
        if any(
            str(launch.get("job")) == job
            for launch in story.read_lines(RunDirectory(root).launches)
        ):
            return root
    return None


def expected_run(experiments: Path, overrides: Sequence[str], job: str) -> Path:
    """Where the run of a job that was just submitted will be, as training/ names it."""
    named = {"run_dir": "", "output_dir": "", "experiment_name": "train"}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in named:
            named[key] = value
    chosen = named["run_dir"] or named["output_dir"]
    return Path(chosen).absolute() if chosen else experiments / named["experiment_name"] / job


def job_of(root: Path) -> str | None:
    """The job of a run's last start."""
    starts = [launch.get("job") for launch in story.read_lines(RunDirectory(root).launches)]
    if starts and starts[-1]:
        return str(starts[-1])
    return root.name if root.name.partition("_")[0].isdigit() and "-" not in root.name else None


def _job(queue: Sequence[Job], job: str | None) -> Job | None:
    return next((known for known in queue if known.id == job), None)


def _tasks(queue: Sequence[Job], job: str) -> list[Job]:
    """Tasks of the array `job`, by number."""
    found = [known for known in queue if known.id.startswith(f"{job}_")]
    return sorted(found, key=lambda task: int(task.id.partition("_")[2]))


def _number(job: str) -> int:
    digits = job.partition("_")[0]
    return int(digits) if digits.isdigit() else 0
