"""`convoy submit`: finds before queueing what would fail after it, then submits with sbatch."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.host import cluster, companion, first_use, job_file, locate, site, sweep
from convoy.host.submission import Submission, check, check_points, too_uneven
from convoy.host.sweep_state import Standing, standings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, help="nodes (default: 1)")
    parser.add_argument(
        "--min-nodes",
        type=int,
        metavar="N",
        help="continue on as few nodes when others are lost, instead of requeueing",
    )
    for name, summary in (
        ("partition", "partition"),
        ("account", "account that is charged"),
        ("time", "time limit, as sbatch writes it: 12:00:00"),
        ("gpus-per-node", "GPUs of each node, a rank on each"),
    ):
        parser.add_argument(
            f"--{name}", help=f"{summary} (default: environment, slurm/site.conf, the job file)"
        )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other sbatch option",
    )
    parser.add_argument(
        "--image", type=Path, help="image (default: CONVOY_IMAGE, build/convoy.sif)"
    )
    parser.add_argument(
        "--estimate",
        metavar="TIME",
        help="how long the training will take; the time limit must allow it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check, and print the whole text instead of submitting",
    )
    parser.add_argument(
        "--multirun",
        "-m",
        action="store_true",
        help="a sweep: a training for each combination of a=1,2 b=3,4, in one job array",
    )
    parser.add_argument(
        "--sweep",
        type=Path,
        metavar="DIR",
        help="the sweep's folder; without --multirun: submit its unfinished points",
    )
    parser.add_argument(
        "--concurrency", type=int, metavar="N", help="the most points of a sweep that run at once"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments, after --"
    )


def run(args: argparse.Namespace) -> int:
    root = site.find_checkout()
    if args.sweep and not args.multirun:
        _take_up(args, sweep.load(args.sweep.absolute()))
    nodes = args.nodes or 1
    settings = site.load(root)
    if args.image:
        settings = site.Site(
            root, {**settings.environment, "CONVOY_IMAGE": str(args.image.absolute())}
        )
    given = _given(args)
    job = job_file.directives(job_file.choose(root, nodes).read_text())
    words = first_use.missing_words(job, settings.sbatch_options | given)
    if words:
        answers = _ask(words, site.path_of(root, os.environ))
        settings = site.Site(root, {**settings.environment, **answers})
    options = {"nodes": str(nodes)} | settings.sbatch_options | given
    if args.min_nodes is not None:
        options = job_file.elastic(options, nodes, args.min_nodes)
    submission = Submission(settings, nodes, options, args.overrides)
    if args.multirun:
        return _submit_sweep(args, submission, given)
    for left in too_uneven(submission, args.min_nodes or nodes):
        print(
            f"With {left} of the {nodes} nodes left, the global batch cannot be split evenly: the "
            "job is requeued then.",
            file=sys.stderr,
        )
    check(submission, args.estimate)
    if args.dry_run:
        print(f"{shlex.join(submission.command)}\nimage {settings.image}", file=sys.stderr)
        print(submission.text, end="")
        return ExitCode.FINISHED
    print(shlex.join(submission.command), flush=True)
    training = cluster.submit(submission.command, submission.environment)
    print(f"Submitted batch job {training}", flush=True)
    if companion.is_wanted([*settings.overrides, *args.overrides]):
        beside = companion.command(submission, training)
        print(shlex.join(beside), flush=True)
        scoring = cluster.submit(beside, submission.environment)
        print(f"Submitted batch job {scoring}", flush=True)
    return ExitCode.FINISHED


def _take_up(args: argparse.Namespace, earlier: sweep.Sweep) -> None:
    """What was asked for before, where this command line does not say it anew."""
    if args.overrides:
        raise ConvoyError(
            f"{earlier.root} has its arguments. Leave {args.overrides[0]} out, or give --multirun "
            "and all arguments for a sweep of its own."
        )
    args.multirun, args.overrides = True, list(earlier.overrides)
    args.nodes = args.nodes or earlier.nodes
    args.concurrency = args.concurrency or earlier.concurrency
    typed = _given(args)
    args.sbatch = [f"{name}={value}" for name, value in ({**earlier.options, **typed}).items()]


def _submit_sweep(
    args: argparse.Namespace, submission: Submission, given: Mapping[str, str]
) -> int:
    """One array of the points that are neither finished nor in the queue."""
    settings = submission.site
    if companion.is_wanted([*settings.overrides, *args.overrides]):
        raise ConvoyError(
            f"{companion.KEY} is for one training: leave it out of a sweep, and score the points "
            "when they are finished (convoy score RUN)."
        )
    root = args.sweep or sweep.default_root(settings.experiments, args.overrides)
    root = root.absolute()
    found = check_points(submission, root, args.estimate)
    whole = sweep.build(
        root, args.overrides, submission.nodes, given, _count(args.concurrency), found
    )
    if not args.dry_run:
        whole = sweep.save(whole)
    queue, problem = locate.own_jobs()
    points = standings(whole, queue, problem)
    if any(point.state == "unknown" for point in points):
        raise ConvoyError(f"SLURM does not say which points are in the queue: {problem}")
    waiting = [point.point for point in points if point.is_open]
    said = _counted(points)
    if not waiting:
        print(f"{root}: {said}; there is nothing to submit.")
        return ExitCode.FINISHED
    log = {"output": sweep.LOG} | dict(given)
    options = {**submission.options, **log, "array": whole.array(waiting)}
    array = replace(submission, options=options, overrides=[f"--sweep={root}"])
    print(shlex.join(array.command), flush=True)
    if args.dry_run:
        for point in waiting:
            print(f"{point.number}  {shlex.join(point.overrides)}")
        return ExitCode.FINISHED
    job = cluster.submit(array.command, array.environment)
    sweep.record(whole, job, waiting, options["output"])
    print(f"Submitted batch job {job} for {len(waiting)} of {len(points)} points ({said}).")
    print(f"convoy sweep {root} shows them.")
    return ExitCode.FINISHED


def _counted(points: Sequence[Standing]) -> str:
    """`3 finished, 1 failed`."""
    states = [point.state for point in points]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _count(concurrency: int | None) -> int | None:
    if concurrency is not None and concurrency < 1:
        raise ConvoyError(f"--concurrency={concurrency} must be at least 1.")
    return concurrency


def _ask(words: Sequence[first_use.Word], path: Path) -> dict[str, str]:
    """The user's answers, which are added to the site's file `path`.

    Raises ConvoyError where nobody can answer.
    """
    if not sys.stdin.isatty():
        raise ConvoyError(
            f"{path} does not set {' and '.join(map(str, words))}. Add NAME=VALUE lines, or give "
            f"{' and '.join(f'--{word.option}' for word in words)}."
        )
    answers: dict[str, str] = {}
    for word in words:
        while answers.get(word.name) not in word.choices:
            print(f"{word} [{word.default}]: ", end="", file=sys.stderr, flush=True)
            answers[word.name] = input().strip() or word.default
    site.add(path, answers)
    print(f"Added to {path}.", file=sys.stderr)
    return answers


def _given(args: argparse.Namespace) -> dict[str, str]:
    named = {
        name: getattr(args, name.replace("-", "_"))
        for name in ("partition", "account", "time", "gpus-per-node")
    }
    more = dict(entry.removeprefix("--").split("=", 1) for entry in args.sbatch if "=" in entry)
    if len(more) < len(args.sbatch):
        raise ConvoyError("--sbatch takes NAME=VALUE, for example --sbatch constraint=l40s.")
    return {name: value for name, value in named.items() if value is not None} | more
