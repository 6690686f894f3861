"""What can be found before a job queues that would fail after it, and the command that submits it.

Standard library only, but for `convoy check`, which runs in the image.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.host import cluster, job_file
from convoy.host.site import Site
from convoy.host.words import slurm_time
from convoy.run.layout import RunDirectory
from convoy.run.progress import read_progress


@dataclass(frozen=True)
class Submission:
    """One training to be submitted: `options` are sbatch's beside the job file's own."""

    site: Site
    nodes: int
    options: Mapping[str, str]
    overrides: Sequence[str]

    @property
    def script(self) -> Path:
        return job_file.choose(self.site.root, self.nodes)

    @property
    def effective(self) -> dict[str, str]:
        """Every option that sbatch will act on."""
        return job_file.directives(self.script.read_text()) | dict(self.options)

    @property
    def command(self) -> list[str]:
        return job_file.command(self.script, self.options, self.overrides)

    @property
    def environment(self) -> dict[str, str]:
        """That of the sbatch call, which the job inherits."""
        named = {"CONVOY_ROOT": str(self.site.root), "CONVOY_IMAGE": str(self.site.image)}
        return dict(os.environ) | named

    @property
    def text(self) -> str:
        """The job's whole text."""
        return job_file.render(
            self.script.read_text(), self.options, self.site.root, self.overrides
        )


def too_uneven(submission: Submission, least: int) -> list[int]:
    """Numbers of nodes, from `least` on, over which the global batch cannot be split evenly; none
    where the arguments do not name it."""
    given = [word.partition("=")[2] for word in submission.overrides if _names_batch(word)]
    gpus = submission.effective["gpus-per-node"].rpartition(":")[2]
    if not given or not given[-1].isdigit() or not gpus.isdigit() or not int(gpus):
        return []
    return [
        nodes for nodes in range(least, submission.nodes) if int(given[-1]) % (nodes * int(gpus))
    ]


def _names_batch(override: str) -> bool:
    return override.lstrip("+").startswith("global_batch=")


def check(submission: Submission, estimate: str | None) -> None:
    """Raise ConvoyError for what would fail after the queue; `estimate` is how long it takes."""
    _require_place_and_time(submission, estimate)
    _check_in_image(submission)
    _require_estimate_of_the_run(submission.effective["time"], submission.overrides)


def check_points(submission: Submission, sweep: Path, estimate: str | None) -> list[dict[str, Any]]:
    """The same for a sweep below the folder `sweep`, whose words `submission` has: its points, each
    of them checked, as `convoy check --multirun` prints them. `estimate` is of one point."""
    _require_place_and_time(submission, estimate)
    printed = _check_in_image(submission, "--multirun", f"--sweep={sweep}")
    points: list[dict[str, Any]] = json.loads(printed)
    return points


def _require_place_and_time(submission: Submission, estimate: str | None) -> None:
    _require_image(submission.site.image)
    _require_writable(submission.site.experiments)
    _require_time(submission.effective, estimate)


def _require_image(image: Path) -> None:
    if not os.access(image, os.R_OK):
        raise ConvoyError(
            f"There is no image {image} that can be read: make image, or "
            "CONVOY_IMAGE=/path/to/convoy.sif."
        )


def _require_writable(experiments: Path) -> None:
    try:
        experiments.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvoyError(
            f"NAVSIM_EXP_ROOT={experiments} cannot be made: {error.strerror}. Name a shared folder."
        ) from error
    if not os.access(experiments, os.W_OK):
        raise ConvoyError(
            f"NAVSIM_EXP_ROOT={experiments} cannot be written. Name a shared folder that you can "
            "write to."
        )


def _require_time(effective: Mapping[str, str], estimate: str | None) -> None:
    """The time limit against the partition's, and against the estimate that was given."""
    limit = _seconds("--time", effective["time"])
    partition = effective["partition"]
    known = cluster.partitions()
    if partition not in known:
        raise ConvoyError(
            f"There is no partition {partition!r}. This cluster has: {', '.join(sorted(known))}."
        )
    allowed, total = known[partition].limit, known[partition].nodes
    if allowed is not None and (limit is None or limit > allowed):
        raise ConvoyError(
            f"--time={effective['time']} is over the limit of partition {partition}, "
            f"{slurm_time(allowed)}: the job would never start. Ask for less; the same command "
            "continues from the last checkpoint."
        )
    if total is not None and int(effective["nodes"]) > total:
        raise ConvoyError(
            f"--nodes={effective['nodes']}, and partition {partition} has {total} node(s) in all."
        )
    if estimate is not None:
        _require_within("--estimate", _seconds("--estimate", estimate), effective["time"])


def _check_in_image(submission: Submission, *options: str) -> str:
    """`convoy check` as the job will see it: in the image, with its bind paths. Its own messages
    reach the user; returns what it prints."""
    site = submission.site
    gpus = submission.effective["gpus-per-node"].rpartition(":")[2]
    environment = {
        **site.environment,
        "CONVOY_IMAGE": str(site.image),
        "NAVSIM_EXP_ROOT": str(site.experiments),
    }
    command = [
        str(site.root / "slurm" / "container.sh"),
        "check",
        "--quiet",
        f"--nodes={submission.nodes}",
        f"--processes-per-node={gpus}",
        *options,
        "--",
        *site.overrides,
        *submission.overrides,
    ]
    checked = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE)
    if checked.returncode:
        raise SystemExit(checked.returncode)
    return checked.stdout


def _require_estimate_of_the_run(limit: str, overrides: Sequence[str]) -> None:
    """The limit against the run's own last report, where `run_dir` names one to continue."""
    named = [v for key, _, v in (o.partition("=") for o in overrides) if key == "run_dir"]
    progress = read_progress(RunDirectory(Path(named[-1]))) if named else None
    if progress is not None:
        what = f"the run's own estimate at step {progress.step}"
        _require_within(what, round(progress.seconds_left), limit)


def _require_within(what: str, needed: int | None, limit: str) -> None:
    available = _seconds("--time", limit)
    if available is not None and (needed is None or needed > available):
        hours = "unlimited" if needed is None else f"{needed / 3600:.1f} h"
        raise ConvoyError(
            f"The time limit {limit} is shorter than {what} ({hours}). Give --time, or more nodes; "
            "or submit in parts: leave --estimate out, and submit the same command with the same "
            "run_dir again."
        )


def _seconds(name: str, text: str) -> int | None:
    try:
        return job_file.seconds(text)
    except ValueError as error:
        raise ConvoyError(
            f"{name}={text} is not a time that SLURM knows: for example 90, 12:00:00 or 1-12:00:00."
        ) from error
