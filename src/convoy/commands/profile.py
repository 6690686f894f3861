"""`convoy profile`: a few warm steps of a real training as a trace, and where their time goes."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import datetime
from pathlib import Path

from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.run import trace, trace_page
from convoy.run.atomic import write_text
from convoy.run.layout import RunDirectory
from convoy.run.trace import Breakdown

DESCRIPTION = """\
Train for a few steps with the arguments of `convoy train`, trace some of them, and say what bounds
them and what to change. Or read a trace that was made before: convoy profile --read FILE."""

# For a short run of its own; what is given on the command line comes after and wins.
SHORT_RUN = (
    "trainer.params.limit_val_batches=0",
    "trainer.params.num_sanity_val_steps=0",
    "watchdog_minutes=30",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps to trace (default: %(default)s)"
    )
    parser.add_argument(
        "--warm",
        type=int,
        default=30,
        help="steps before: compiler, CUDA graph, full queues (default: %(default)s)",
    )
    parser.add_argument("--read", type=Path, metavar="FILE", help="only read this trace")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if args.read is not None:
        folder, title = args.read.parent, args.read.name
        found = trace.read(args.read)
        _show(args, found, folder, title, args.read)
        return ExitCode.FINISHED
    if args.steps < 1 or args.warm < 1:
        raise ConvoyError(f"--steps={args.steps} and --warm={args.warm} must be 1 or more.")
    from convoy.commands import train

    root = _run_dir(args.overrides)
    args.overrides = [
        *SHORT_RUN,
        *args.overrides,
        f"run_dir={root}",
        f"profile.steps={args.steps}",
        f"profile.warm={args.warm}",
    ]
    args.agreement = args.nodes = args.node_rank = args.rendezvous = args.start = None
    with _said_on_stderr() if args.json else nullcontext():
        code = train.run(args)
    if code != ExitCode.FINISHED:
        return code
    layout = RunDirectory(root)
    if not layout.trace.is_file():
        raise ConvoyError(
            f"No step was traced in {root}: the training ended before step {args.warm}. Give fewer "
            "--warm, or more epochs (trainer.params.max_epochs)."
        )
    _show(args, trace.read(layout.trace), layout.trace.parent, root.name, layout.trace)
    return ExitCode.FINISHED


@contextmanager
def _said_on_stderr() -> Iterator[None]:
    """What the ranks and this process print leaves standard output to the figures."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _run_dir(overrides: list[str]) -> Path:
    """A run of its own: the training's own directory is not touched. Raises ConvoyError for one
    that is there."""
    given = [word.partition("=")[2] for word in overrides if word.startswith("run_dir=")]
    if not given:
        return Path(f"profile-{datetime.now():%Y%m%d-%H%M%S}").absolute()
    root = Path(given[-1]).absolute()
    if root.exists():
        raise ConvoyError(
            f"{root} is there already. A profile is a short run of its own: give another run_dir, "
            "or none."
        )
    return root


def _show(
    args: argparse.Namespace, found: Breakdown, folder: Path, title: str, traced: Path
) -> None:
    page = folder / "profile.html"
    try:
        write_text(page.with_suffix(".json"), json.dumps(found.as_json(), indent=1) + "\n")
        picture = _picture(page.with_suffix(".png"), found, title)
        trace_page.write(page, found, title, str(traced))
    except OSError as error:
        raise ConvoyError(f"{page} cannot be written: {error.strerror}.") from error
    if args.json:
        print(json.dumps(found.as_json(), indent=1))
        return
    out = console()
    for line in _lines(found):
        out.print(line, highlight=False, soft_wrap=True)
    out.print(f"trace    {traced} (ui.perfetto.dev)", highlight=False, soft_wrap=True)
    out.print(f"page     {page}", highlight=False, soft_wrap=True)
    out.print(f"picture  {picture}", highlight=False, soft_wrap=True)


def _lines(found: Breakdown) -> Iterator[str]:
    yield found.verdict()
    yield found.advice()
    yield ""
    yield f"{found.step:9.2f} ms a step"
    for name, value, _ in trace_page.parts(found):
        yield f"{value:9.2f} ms {value / found.step:4.0%}  {name}"
    if found.communication:
        yield (
            f"{found.communication:9.2f} ms       all-reduce, {found.share_hidden:.0%} of it hidden"
        )
    yield ""


def _picture(path: Path, found: Breakdown, title: str) -> str:
    try:
        return str(trace_page.draw(path, found, title))
    except ImportError:
        return "none: matplotlib is not installed here (make venv, or run it in the image)"
