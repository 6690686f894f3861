"""`convoy stop`: asks a run to save a checkpoint and end; the same command goes on from there."""

import argparse
import signal
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.run import stop_request
from convoy.run.layout import RunDirectory
from convoy.run.record import last_start
from convoy.topology import Agreement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR")
    parser.add_argument("--agreement", help="in its place: what `convoy rendezvous` printed")
    parser.add_argument(
        "--signal", default="USR1", choices=("USR1", "TERM", "INT"), help=argparse.SUPPRESS
    )


def run(args: argparse.Namespace) -> int:
    if args.agreement is not None:
        agreement = Agreement.from_text(args.agreement)
        directory, start = RunDirectory(Path(agreement.run_dir)), agreement.start
    elif args.run_dir is not None:
        directory = RunDirectory(args.run_dir.absolute())
        last = last_start(directory)
        if last is None:
            raise ConvoyError(
                f"{directory.launches} names no start of a run: convoy stop takes the directory "
                "of one."
            )
        start = last["start"]
    else:
        raise ConvoyError("Name the run's directory: convoy stop RUN_DIR.")
    try:
        stop_request.ask(directory, start, signal.Signals[f"SIG{args.signal}"])
    except OSError as error:
        raise ConvoyError(
            f"{directory.stop_request} cannot be written: {error.strerror}. The job takes the "
            "same from a signal: scancel --signal=USR1 --batch JOB."
        ) from error
    print(f"launch: {start} was asked to save and stop (SIG{args.signal})", flush=True)
    return ExitCode.FINISHED
