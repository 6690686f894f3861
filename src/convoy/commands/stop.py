"""`convoy stop`: asks a run to save a checkpoint and end; the same command goes on from there."""

import argparse
import signal
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.run import stop_request
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR")
    parser.add_argument("--agreement", help="in its place: what `convoy rendezvous` printed")
    parser.add_argument(
        "--signal", default="USR1", choices=("USR1", "TERM", "INT"), help=argparse.SUPPRESS
    )


def run(args: argparse.Namespace) -> int:
    if (args.run_dir is None) == (args.agreement is None):
        raise ConvoyError("convoy stop RUN_DIR: name the run's directory.")
    root = args.run_dir or Path(Agreement.from_text(args.agreement).run_dir)
    directory = RunDirectory(root)
    try:
        stop_request.ask(directory, signal.Signals[f"SIG{args.signal}"])
    except OSError as error:
        raise ConvoyError(f"{directory.stop_request} cannot be written: {error.strerror}.") from error
    print(f"launch: asked the ranks of {root} to save and stop (SIG{args.signal})", flush=True)
    return ExitCode.FINISHED
