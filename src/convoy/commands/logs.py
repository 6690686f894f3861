"""`convoy logs`: what a job or one of its ranks says."""

import argparse
import sys
import time
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.host import cluster, locate, site
from convoy.host.cluster import SlurmUnavailable
from convoy.host.locate import Found
from convoy.host.view import last_lines
from convoy.run.layout import RunDirectory

EVERY = 1.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", help="job id or run directory (default: your newest job or run)"
    )
    parser.add_argument(
        "--rank", type=int, help="the log of this rank (default: the job's own log)"
    )
    parser.add_argument("--lines", type=int, help="the last lines only (default: all)")
    parser.add_argument("--follow", action="store_true", help="keep showing new lines until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    found = locate.find(args.job, site.load(site.find_checkout()).experiments)
    path = _log(found, args.rank)
    try:
        with path.open(errors="replace") as file:
            if args.lines is not None:
                for line in last_lines(path, args.lines, 1 << 22):
                    print(line)
                file.seek(0, 2)
            _copy(file.read())
            while args.follow:
                time.sleep(EVERY)
                _copy(file.read())
    except OSError as error:
        raise ConvoyError(f"{path} cannot be read: {error.strerror}.") from error
    except KeyboardInterrupt:
        pass
    return ExitCode.FINISHED


def _copy(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _log(found: Found, rank: int | None) -> Path:
    """Raises ConvoyError, naming the ranks that have a log."""
    if rank is None:
        own = _job_log(found)
        if own is not None:
            return own
    if found.root is None:
        raise ConvoyError(
            f"Job {found.id} has not started: there is no log yet. convoy watch {found.id} says "
            "why."
        )
    run_ = RunDirectory(found.root)
    path = run_.rank_log(rank or 0)
    if not path.is_file():
        ranks = sorted(int(log.stem.partition("-")[2]) for log in run_.logs.glob("rank-*.log"))
        there = f"ranks {ranks[0]} to {ranks[-1]} have one" if ranks else "no rank has one yet"
        raise ConvoyError(f"{path} does not exist: {there}.")
    return path


def _job_log(found: Found) -> Path | None:
    """What sbatch's --output says: SLURM knows it while it knows the job.

    Then by its usual name.
    """
    candidates = []
    if found.id is not None:
        try:
            candidates.append(Path(cluster.job_facts(found.id).get("StdOut", "")))
        except SlurmUnavailable:
            pass
        candidates.append(Path(f"convoy-{found.id}.log"))
    return next((path for path in candidates if path.is_file()), None)
