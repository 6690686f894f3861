"""`convoy score`: arguments, progress and table. The work is imported when it runs."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.commands import score_compare
from convoy.commands.console import console, progress
from convoy.errors import ConvoyError, ExitCode
from convoy.run.score_layout import ScoreDirectory
from convoy.topology import Task

if TYPE_CHECKING:
    from convoy.scoring.run import Outcome, Progress

DESCRIPTION = """\
Compute NAVSIM's PDM score (EPDMS) of a checkpoint. RUN is a run directory, or a checkpoint with
agent=…; an agent without weights, agent=constant_velocity_agent, needs neither. NAVSIM's code
computes every metric, and its names hold: navsim_log_path, original_sensor_path, metric_cache_path
and train_test_split.scene_filter.… as for its run_pdm_score scripts. Metric caches that are missing
are made. The same command continues a scoring that was killed. Under srun each task does its share:
slurm/score.slurm."""
# What NAVSIM's columns are called in papers, in the order of its table.
SHORT = {
    "score": "EPDMS",
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "lane_keeping": "LK",
    "history_comfort": "HC",
    "two_frame_extended_comfort": "EC",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("what", nargs="?", metavar="RUN", help="a run directory, or a checkpoint")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for NAVSIM's run_pdm_score"
    )
    parser.add_argument(
        "--split", metavar="NAME", default="navtest", help="train_test_split (default: navtest)"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        action="append",
        help="of the run: best (default, or last where there is none), last, or a file; may be "
        "given several times",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where the scores go (default: <run>/scores/<split>/<checkpoint>)",
    )
    parser.add_argument(
        "--workers", metavar="W", type=int, help="processes (default: one per available CPU)"
    )
    parser.add_argument(
        "--shards",
        metavar="DIR",
        type=Path,
        help="take the features of scenes that these packed shards hold from there",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the agent computes, in batches on a GPU (default: a GPU where there is one)",
    )
    parser.add_argument(
        "--precision",
        choices=("32", "bf16"),
        default="32",
        help="of the agent in batches (default: %(default)s)",
    )
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="do not score the human driver and constant velocity as well",
    )
    parser.add_argument("--retry-failed", action="store_true", help="score failed scenes again")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        type=Path,
        help="compute nothing: paired differences of two scorings, or of two runs' on the split",
    )
    parser.add_argument(
        "--submission",
        metavar="FILE",
        type=Path,
        help="also write the trajectories for NAVSIM's leaderboards, with team_name=… authors=… "
        "email=… institution=… country=…",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    if args.compare:
        score_compare.show(args)
        return ExitCode.FINISHED
    task = Task.from_environment(os.environ)
    os.environ["TQDM_DISABLE"] = "1"  # NAVSIM draws a bar for each log that it opens
    if args.what is not None and "=" in args.what:
        args.overrides.insert(0, args.what)
        args.what = None
    from convoy.scoring.request import requests
    from convoy.scoring.run import scene_source, score
    from convoy.scoring.submission import take_who, write_submission
    from convoy.scoring.worst import draw_worst

    who = take_who(args.overrides) if args.submission else {}
    found = requests(args)
    if args.submission and len(found) > 1:
        raise ConvoyError("--submission is one file: give one --checkpoint.")
    summaries = []
    for request in found:
        with _progress(task) as show:
            outcome = score(request, task, show)
        _print_task(task, outcome)
        if outcome.summary is not None:
            summaries.append(outcome.summary | {"path": str(request.out)})
            lacking_picture = draw_worst(ScoreDirectory(request.out), scene_source(request.config))
            if lacking_picture:
                print(f"note: no picture of the worst scenes: {lacking_picture}", file=sys.stderr)
            if args.submission:
                lacking = write_submission(ScoreDirectory(request.out), args.submission, who)
                without = f"; {len(lacking)} scenes have no trajectory" if lacking else ""
                print(f"submission: {args.submission}{without}", file=sys.stderr)
            if not args.json:
                _print(summaries[-1])
    if args.json and summaries:
        print(json.dumps(summaries[0] if len(found) == 1 else summaries, indent=1))
    return ExitCode.FINISHED


def _print_task(task: Task, outcome: "Outcome") -> None:
    """What this task did, on standard error: standard output is the table's."""
    for note in outcome.notes:
        print(f"note: {note}", file=sys.stderr)
    done = outcome.done
    print(
        f"task {task.number} of {task.count}: {done.scenes} scenes scored, {done.caches_made} "
        f"metric caches made, {done.failed} failed, {outcome.seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _print(summary: Mapping[str, Any]) -> None:
    from rich.table import Table

    columns = {"agent": summary["metrics"]} | {
        name.removesuffix("_agent").replace("_", " "): baseline["metrics"]
        for name, baseline in summary["baselines"].items()
    }
    checkpoint = Path(summary["checkpoint"]).name if summary["checkpoint"] else "no weights"
    title = (
        f"{summary['agent'].rpartition('.')[2]} ({checkpoint}), {summary['split']}: "
        f"{summary['tokens']} scenes"
    )
    table = Table("", "", title=title)
    for name in columns:
        table.add_column(name, justify="right")
    names = sorted(summary["metrics"], key=lambda name: name != "score")
    for name in names:
        table.add_row(_short(name), name, *(_figure(metrics[name]) for metrics in columns.values()))
    console().print(table)
    print(f"in brackets: 95 % confidence, from drawing logs again. {summary['path']}/scores.csv")
    failed = summary["failed"]
    for entry in failed[:5]:
        print(f"failed: {entry['log']}/{entry['token']}: {entry['reason']}")
    if failed:
        print(f"{len(failed)} of {summary['tokens']} scenes failed: {summary['path']}/summary.json")


def _short(column: str) -> str:
    for stage, mark in (("_stage_one", " 1"), ("_stage_two", " 2")):
        if column.endswith(stage):
            return SHORT.get(column.removesuffix(stage), "") + mark
    return SHORT.get(column, "")


def _figure(metric: Mapping[str, float | None]) -> str:
    """In per cent, as papers have it."""
    if metric["mean"] is None:
        return "–"
    mean = f"{100 * metric['mean']:.2f}"
    if metric["low"] is None or metric["high"] is None:
        return mean
    return f"{mean} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


@contextmanager
def _progress(task: Task) -> Iterator[Callable[["Progress"], None]]:
    """Progress of all tasks, shown by the first one."""
    if task.number != 0:
        yield lambda _: None
        return
    with progress("scenes") as shown:
        yield lambda state: shown.show(
            state.done, state.total, f"{state.failed} failed" if state.failed else ""
        )
