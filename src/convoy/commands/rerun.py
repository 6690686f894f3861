"""`convoy rerun`: submit a run's training again, as a new run, and say what will not be the
same."""

import argparse
import shlex

from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.host import cluster, locate, site
from convoy.host.site import Site
from convoy.host.submission import Submission, check
from convoy.run import comparison, story
from convoy.run.story import Story

PLACES = ("run_dir", "output_dir")  # a new run has a directory of its own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_", metavar="RUN", help="run directory or job id")
    parser.add_argument("--dry-run", action="store_true", help="show the command; submit nothing")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an sbatch option: time=12:00:00, partition=h200",
    )


def run(args: argparse.Namespace) -> int:
    settings = site.load(site.find_checkout())
    root = locate.find(args.run_, settings.experiments).root
    if root is None:
        raise ConvoyError(f"Job {args.run_} has not started: there is nothing to run again.")
    earlier = story.read(root)
    submission = again(earlier, settings, args.sbatch)
    out = console()
    for reason in comparison.not_repeatable(earlier, software(settings)):
        out.print(f"Not the same: {reason}.", style="yellow", highlight=False, soft_wrap=True)
    print(shlex.join(submission.command), flush=True)
    if args.dry_run:
        return ExitCode.FINISHED
    check(submission, None)
    job = cluster.submit(submission.command, submission.environment)
    print(f"Submitted batch job {job}. Compare them later: convoy diff {root} {job}")
    return ExitCode.FINISHED


def again(earlier: Story, settings: Site, extra: list[str]) -> Submission:
    """The last start's nodes, GPUs and arguments. Raises ConvoyError where they are not
    recorded."""
    if not earlier.launches:
        raise ConvoyError(
            f"{earlier.root} has no launches.jsonl: it is not known how this run was started."
        )
    last = earlier.launches[-1]
    nodes = max(1, len(last.get("nodes") or ()))
    given = [str(word) for word in last.get("overrides") or ()]
    # The site's own words come first in every start: the launch adds them again.
    if given[: len(settings.overrides)] == settings.overrides:
        given = given[len(settings.overrides) :]
    overrides = [word for word in given if word.partition("=")[0] not in PLACES]
    options = {"nodes": str(nodes)} | settings.sbatch_options
    each = last.get("processes_per_node")
    if isinstance(each, int) and "gpus-per-node" not in options:
        options["gpus-per-node"] = str(each)
    wrong = [word for word in extra if "=" not in word]
    if wrong:
        raise ConvoyError(f"--sbatch {wrong[0]}: give NAME=VALUE, for example time=12:00:00.")
    options |= dict(word.removeprefix("--").split("=", 1) for word in extra)
    return Submission(settings, nodes, options, overrides)


def software(settings: Site) -> dict[str, str | None]:
    """What a new start would use, as far as a login node can tell without the image."""
    from convoy.run.record import commit_of

    tree = settings.environment.get("NAVSIM_DEVKIT_ROOT")
    found = {"convoy": commit_of(settings.root)}
    if tree:
        from pathlib import Path

        found["navsim"] = commit_of(Path(tree))
    return found
