"""`convoy report`: a run, or several side by side, on one page and in one picture."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.host import locate, site
from convoy.run import picture, report, story
from convoy.run.story import Story


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run directories or job ids (default: the newest)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="page to write (default: report.html in the run, comparison.html here for several)",
    )


def run(args: argparse.Namespace) -> int:
    experiments = site.load(site.find_checkout()).experiments
    runs = [_story(target, experiments) for target in args.runs or [None]]
    path = args.out or (runs[0].run.report if len(runs) == 1 else Path("comparison.html"))
    try:
        report.write(path, runs)
    except OSError as error:
        raise ConvoyError(
            f"{path} cannot be written: {error.strerror}. Name another with --out."
        ) from error
    out = console()
    out.print(f"page     {path}", highlight=False, soft_wrap=True)
    out.print(
        f"picture  {_picture(path.with_suffix('.png'), runs)}", highlight=False, soft_wrap=True
    )
    return ExitCode.FINISHED


def _story(target: str | None, experiments: Path) -> Story:
    root = locate.find(target, experiments).root
    if root is None:
        raise ConvoyError(f"Job {target} has not started: there is nothing to report yet.")
    return story.read(root)


def _picture(path: Path, runs: Sequence[Story]) -> str:
    try:
        return str(picture.write(path, runs))
    except ImportError:
        return "none: matplotlib is not installed here (make venv, or run it in the image)"
