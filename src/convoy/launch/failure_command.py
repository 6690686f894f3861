"""`convoy failure`: the first rank that failed in a start of a run, as slurm/launch.sh shows it at its end."""

import argparse
from pathlib import Path

from convoy.errors import ExitCode
from convoy.launch import failures
from convoy.rundir import RunDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="the run's directory")
    parser.add_argument("run_id", help="of the start: <job id>-<restart count>")


def run(args: argparse.Namespace) -> int:
    found = failures.read(failures.folder(args.run_dir, args.run_id))
    if found:
        print(failures.report(found, RunDirectory(args.run_dir)))
    else:
        print(f"convoy: no rank left a word; the lines above are all, and the ranks' logs: {args.run_dir / 'logs'}")
    return ExitCode.FINISHED
