"""`convoy ask-to-stop`: what slurm/launch.sh says when a signal asks it to end the job early.

It leaves a request in the run directory, which reaches the ranks on all nodes; no signal of SLURM's
could without ending torchrun's agents, or the process that keeps the image mounted.
"""

import argparse
import signal
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.run import stop_request
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agreement", help="the line that `convoy rendezvous` printed for the start")
    parser.add_argument("--signal", default="USR1", choices=("USR1", "TERM", "INT"))


def run(args: argparse.Namespace) -> int:
    agreement = Agreement.from_text(args.agreement)
    directory = RunDirectory(Path(agreement.run_dir))
    number = signal.Signals[f"SIG{args.signal}"]
    try:
        stop_request.ask(directory, number, agreement.start)
    except OSError as error:
        raise ConvoyError(
            f"The ranks could not be asked to save and stop: {directory.stop_request} cannot be "
            f"written ({error.strerror})."
        ) from error
    print(f"launch: {number.name}: the ranks were asked to save and stop", flush=True)
    return ExitCode.FINISHED
