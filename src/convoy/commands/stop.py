"""`convoy stop`: a job writes a checkpoint, then ends, and is not requeued."""

import argparse
import time

from convoy.errors import ConvoyError, ExitCode
from convoy.host import cluster, locate, site
from convoy.host.locate import Found
from convoy.run import stop_request
from convoy.run.layout import RunDirectory

PATIENCE = 300.0  # seconds: --signal in the job files gives a run as long
EVERY = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="job id, also of an array, or run directory")
    parser.add_argument(
        "--now",
        action="store_true",
        help="end it at once; what came after the last checkpoint is lost",
    )
    parser.add_argument("--no-wait", action="store_true", help="ask, and do not wait for its end")


def run(args: argparse.Namespace) -> int:
    experiments = site.load(site.find_checkout()).experiments
    jobs = locate.find_all(args.job, experiments)
    for found in jobs:
        _require_stoppable(args.job, found)
    # Those that wait go first: they would start in the place of those that end.
    for found in sorted(jobs, key=lambda found: not _waits(found)):
        if args.now or _waits(found):
            cluster.cancel(str(found.id))
            print(f"Job {found.id} is cancelled.", flush=True)
            continue
        if found.root is not None:
            _ask_the_ranks(RunDirectory(found.root))
        cluster.ask_to_stop(str(found.id))
        print(f"Job {found.id} was asked to write a checkpoint and end.", flush=True)
    if not (args.now or args.no_wait):
        for found in jobs:
            if not _waits(found):
                _wait(found)
                where = f" Its run: {found.root}" if found.root else ""
                print(
                    f"Job {found.id} has ended; the same command continues from its "
                    f"checkpoint.{where}",
                    flush=True,
                )
    return ExitCode.FINISHED


def _waits(found: Found) -> bool:
    return found.job is not None and found.job.state == "PENDING"


def _require_stoppable(target: str, found: Found) -> None:
    if found.id is None:
        raise ConvoyError(f"{target} is not a run of a SLURM job: end its process with Ctrl-C.")
    if found.slurm:
        raise ConvoyError(f"SLURM does not answer, so nothing was stopped: {found.slurm}")
    if found.job is None:
        raise ConvoyError(f"Job {found.id} is not in the queue: there is nothing to stop.")


def _ask_the_ranks(run_: RunDirectory) -> None:
    """By a file in the run directory, which reaches every node, as the batch script does."""
    try:
        stop_request.ask(run_)
    except OSError as error:
        raise ConvoyError(
            f"{run_.root} cannot be written ({error.strerror}), so the run cannot be asked to "
            "write a checkpoint. convoy stop --now ends it without one."
        ) from error


def _wait(found: Found) -> None:
    """Until the job is out of the queue; one that comes back to it is cancelled there."""
    assert found.id is not None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(EVERY)
        queue, problem = locate.own_jobs()
        if problem:
            continue  # a controller that is busy for a moment
        job = next((job for job in queue if job.id == found.id), None)
        if job is None:
            return
        if job.state == "PENDING":  # requeued before SLURM took note
            cluster.cancel(found.id)
            return
    raise ConvoyError(
        f"Job {found.id} still runs after {PATIENCE:.0f} s. convoy logs {found.id} shows what it "
        "does; "
        f"convoy stop --now {found.id} ends it at once."
    )
