"""`convoy failure`: the first rank that failed in a start of a run, as slurm/launch.sh shows it at
its end."""

import argparse
from pathlib import Path

from convoy.errors import ExitCode
from convoy.launch import verdict
from convoy.run.layout import RunDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="the run's directory")
    parser.add_argument("run_id", help="of the start: <job id>-<restart count>")


def run(args: argparse.Namespace) -> int:
    found = verdict.read(verdict.folder(args.run_dir, args.run_id))
    if found:
        print(verdict.report(found, RunDirectory(args.run_dir)))
    else:
        print(
            "convoy: no rank left a word; the lines above are all, and the ranks' logs: "
            f"{args.run_dir / 'logs'}"
        )
    return ExitCode.FINISHED
