"""`convoy verdict`: the rank that failed first in a start; slurm/launch.sh shows it at its end."""

import argparse
from pathlib import Path

from convoy.errors import ExitCode
from convoy.launch import verdict
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agreement", help="the line that `convoy rendezvous` printed for the start")


def run(args: argparse.Namespace) -> int:
    agreement = Agreement.from_text(args.agreement)
    directory = RunDirectory(Path(agreement.run_dir))
    found = verdict.read(directory, agreement.start)
    if found:
        print(verdict.report(found, directory))
    else:
        print(
            "convoy: no rank left a record of a failure. What there is to read: the lines above, "
            f"and the ranks' logs in {directory.logs}."
        )
    return ExitCode.FINISHED
