"""`convoy score-waiting`: what slurm/score_waiting.sh asks again and again beside a training.

Scores the checkpoints that the training has left for it so far, and ends.
"""

import argparse
import os
import sys
from pathlib import Path

from convoy.commands import score as score_command
from convoy.errors import ExitCode
from convoy.host import locate
from convoy.run.layout import RunDirectory
from convoy.topology import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_", metavar="RUN", help="job id or run directory of the training")


def run(args: argparse.Namespace) -> int:
    path = Path(args.run_)
    experiments = Path(os.environ.get("NAVSIM_EXP_ROOT", "exp")).absolute()
    root = path.absolute() if path.is_dir() else locate.run_of(args.run_, experiments)
    if root is None:
        return ExitCode.FINISHED  # the training has not begun
    directory = RunDirectory(root)
    if not directory.all_waiting_for_score():
        return ExitCode.FINISHED
    os.environ["TQDM_DISABLE"] = "1"  # NAVSIM draws a bar for each log that it opens
    from convoy.scoring.request import requests
    from convoy.scoring.run import score
    from convoy.scoring.waiting import keep, waiting

    task = Task.from_environment(os.environ)
    for checkpoint in waiting(directory):
        (request,) = requests(_parsed(checkpoint.words))
        outcome = score(request, task)
        if outcome.summary is None:
            continue
        is_best = keep(directory, checkpoint, outcome.summary, request.out)
        best = ", the best so far" if is_best else ""
        print(
            f"score: step {checkpoint.step}: {outcome.summary['score']:.4f} over "
            f"{outcome.summary['tokens']} scenes of {outcome.summary['split']}{best} "
            f"({outcome.seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    return ExitCode.FINISHED


def _parsed(words: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convoy score")
    score_command.add_arguments(parser)
    return parser.parse_intermixed_args([*words, "--no-baselines"])
