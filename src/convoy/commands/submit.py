"""`convoy submit`: finds before queueing what would fail after it, then submits with sbatch."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.host import cluster, first_use, job_file, site
from convoy.host.submission import Submission, check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=1, help="nodes (default: %(default)s)")
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
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments, after --"
    )


def run(args: argparse.Namespace) -> int:
    root = site.find_checkout()
    settings = site.load(root)
    if args.image:
        settings = site.Site(
            root, {**settings.environment, "CONVOY_IMAGE": str(args.image.absolute())}
        )
    given = _given(args)
    job = job_file.directives(job_file.choose(root, args.nodes).read_text())
    words = first_use.missing_words(job, settings.sbatch_options | given)
    if words:
        answers = _ask(words, site.path_of(root, os.environ))
        settings = site.Site(root, {**settings.environment, **answers})
    options = {"nodes": str(args.nodes)} | settings.sbatch_options | given
    submission = Submission(settings, args.nodes, options, args.overrides)
    check(submission, args.estimate)
    if args.dry_run:
        print(f"{shlex.join(submission.command)}\nimage {settings.image}", file=sys.stderr)
        print(submission.text, end="")
        return ExitCode.FINISHED
    print(shlex.join(submission.command), flush=True)
    job = cluster.submit(submission.command, submission.environment)
    print(f"Submitted batch job {job}")
    return ExitCode.FINISHED


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
