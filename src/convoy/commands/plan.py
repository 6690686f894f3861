"""`convoy plan`: what would finish when, on each partition and number of nodes."""

import argparse
import getpass
import json
import math
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from convoy.commands.console import console, progress
from convoy.errors import ConvoyError, ExitCode
from convoy.host import (
    choice,
    cluster,
    cluster_file,
    history,
    job_file,
    locate,
    plan,
    site,
    starts,
    workload,
)
from convoy.host.choice import Plan
from convoy.host.cluster_model import Cluster
from convoy.host.plan import Offer, Row, Training
from convoy.host.site import Site
from convoy.host.speed_model import RANGE, Observation, Rate
from convoy.host.starts import Wait
from convoy.host.submission import Submission, check
from convoy.run.timeline import span

EPILOG = """Ranges hold in about 80 % of cases. "one piece" is the chance that the training ends in
one job, without meeting the time limit or losing a node; otherwise it is requeued and continues."""

GUESS = 0.5  # a rate with a wider spread is a guess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--aim",
        choices=choice.AIMS,
        default="soonest",
        help="what to recommend (default: %(default)s)",
    )
    parser.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE",
        help="a described cluster instead of the live one (docs/plan.md)",
    )
    parser.add_argument(
        "--account",
        help="account that is charged (default: environment, slurm/site.conf, the job file)",
    )
    parser.add_argument(
        "--nodes",
        metavar="N,N…",
        help="numbers of nodes to look at (default: 1 GPU and 1, 2, 4, 8 nodes)",
    )
    parser.add_argument(
        "--partition", metavar="NAME,NAME…", help="look at these partitions only (default: all)"
    )
    parser.add_argument(
        "--samples", type=int, help="training samples (default: of cache_path, else navtrain's)"
    )
    parser.add_argument("--val-samples", type=int, help="validation samples, with the same default")
    parser.add_argument("--submit", type=int, metavar="ROW", help="submit the job of this row")
    parser.add_argument(
        "--history", action="store_true", help="show earlier runs beside their predictions"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON on standard output")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments, after --"
    )


def run(args: argparse.Namespace) -> int:
    root = site.find_checkout()
    settings = site.load(root)
    earlier = history.stories(settings.experiments)
    checks = [found for found in map(history.check, earlier) if found is not None]
    if args.history:
        _show_history(checks, args.json)
        return ExitCode.FINISHED
    training, samples_source = workload.read(
        [*settings.overrides, *args.overrides], args.samples, args.val_samples
    )
    training = workload.counted(training, earlier, settings.experiments)
    account = args.account or settings.sbatch_options.get("account") or _job_file_account(root)
    observations = [found for found in map(history.observation, earlier) if found is not None]
    if args.cluster:
        picture, tables = cluster_file.load(args.cluster)
        observations = [*history.observations_in(tables), *observations]
    else:
        picture = cluster.read(getpass.getuser())
    rows = _rows(args, settings, picture, training, account, observations, checks)
    notes = workload.notes(training, samples_source, observations)
    if any(row.rate is not None and row.rate.spread > GUESS for row in rows):
        notes.append(
            "speeds are guesses from data sheets: train one epoch on one node, and plan again"
        )
    made = choice.choose(rows, args.aim, notes)
    commands = [_command(root, row, args.overrides, account) for row in made.rows]
    if args.submit is not None:
        return _submit(args, made, training, account, settings)
    if args.json:
        print(json.dumps(_as_json(made, commands, picture.source), indent=1))
    else:
        _show(made, commands)
    return ExitCode.FINISHED if made.best else ExitCode.FAILED


def _job_file_account(root: Path) -> str:
    return job_file.directives(job_file.choose(root, 1).read_text()).get("account", "")


def _rows(
    args: argparse.Namespace,
    settings: Site,
    picture: Cluster,
    training: Training,
    account: str,
    observations: Sequence[Observation],
    checks: Sequence[history.Check],
) -> list[Row]:
    named = args.partition.split(",") if args.partition else picture.partitions
    if unknown := [name for name in named if name not in picture.partitions]:
        raise ConvoyError(
            f"There is no partition {unknown[0]!r}. This cluster has: "
            f"{', '.join(sorted(picture.partitions))}."
        )
    offers = [
        offer
        for offer in plan.offers(picture, account, _sizes(args.nodes))
        if offer.partition in named
    ]
    if not offers:
        raise ConvoyError(
            f"{picture.source} shows no node with GPUs: is Gres set in the cluster's configuration?"
        )
    refused = [plan.refusals(picture, offer, account) for offer in offers]
    warned = [plan.cautions(picture, offer, account) for offer in offers]
    queued = starts.waits(picture, [(offer.partition, offer.gpu, offer.gpus) for offer in offers])
    waits: list[Wait | None] = [queued[index] for index in range(len(offers))]

    def calibrate(rate: Rate) -> Rate:
        return history.calibration(checks, rate.source).apply(rate)

    def forecast(index: int, offer: Offer) -> Row:
        return plan.forecast(
            offer, training, waits[index], observations, refused[index], warned[index], calibrate
        )

    if not args.cluster:  # the real limit of each job is known after a first forecast
        asked = [index for index, offer in enumerate(offers) if not refused[index]]
        commands = [
            _sbatch(settings, forecast(index, offers[index]), args.overrides, account)
            for index in asked
        ]
        with progress("shapes", len(asked)) as bar:
            for index, answer in zip(asked, cluster.test_only(commands), strict=True):
                bar.advance(1)
                if answer.refusal:
                    refused[index] = [f"SLURM: {answer.refusal}"]
                elif answer.start is not None:
                    delay = max(0.0, (answer.start - picture.now).total_seconds())
                    waits[index] = Wait.of(delay, "sbatch --test-only")
    return [forecast(index, offer) for index, offer in enumerate(offers)]


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ConvoyError(f"--nodes {text}: give numbers of nodes with commas, for example 1,2,4.")
    return [int(word) for word in text.split(",")]


def _sbatch(settings: Site, row: Row, overrides: Sequence[str], account: str) -> list[str]:
    script = job_file.choose(settings.root, row.offer.nodes)
    options = settings.sbatch_options | plan.sbatch_options(
        row, job_file.directives(script.read_text()), account
    )
    return job_file.command(script, options, overrides)


def _command(root: Path, row: Row, overrides: Sequence[str], account: str) -> list[str]:
    """`convoy submit …` for a row: it checks the training before it queues."""
    script = job_file.choose(root, row.offer.nodes)
    options = plan.sbatch_options(row, job_file.directives(script.read_text()), account)
    words = ["convoy", "submit"]
    for name in ("nodes", "partition", "account", "time", "gpus-per-node"):
        if name in options:
            words += [f"--{name}", options.pop(name)]
    words += [f"--sbatch={name}={value}" for name, value in options.items()]
    return [*words, "--", *overrides]


def _submit(
    args: argparse.Namespace, made: Plan, training: Training, account: str, settings: Site
) -> int:
    if args.cluster:
        raise ConvoyError("--submit goes to the live cluster: leave --cluster out.")
    if not 1 <= args.submit <= len(made.rows):
        raise ConvoyError(f"--submit {args.submit}: there are rows 1 to {len(made.rows)}.")
    row = made.rows[args.submit - 1]
    if not row.possible:
        raise ConvoyError(
            f"Row {args.submit} ({row.offer}) cannot be submitted: {'; '.join(row.refusals)}."
        )
    offer = row.offer
    script = job_file.directives(job_file.choose(settings.root, offer.nodes).read_text())
    options = settings.sbatch_options | plan.sbatch_options(row, script, account)
    submission = Submission(settings, offer.nodes, options, args.overrides)
    check(submission, None)
    print(shlex.join(submission.command), flush=True)
    job = cluster.submit(submission.command, submission.environment)
    where = locate.expected_run(settings.experiments, [*settings.overrides, *args.overrides], job)
    history.write_prediction(where, row, training, job, time.time())
    print(f"Submitted batch job {job}; its run: {where}\nconvoy watch {job}")
    return ExitCode.FINISHED


# --- what is shown


def _show(made: Plan, commands: Sequence[Sequence[str]]) -> None:
    out = console()
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in (
        "",
        "shape",
        "partition",
        "free",
        "wait",
        "samples/s",
        "epoch",
        "training",
        "total",
        "GPU-h",
        "batch",
        "one piece",
        "against it",
    ):
        right = name in {"", "free", "wait", "samples/s", "epoch", "training", "GPU-h", "one piece"}
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for number, row in enumerate(made.rows, 1):
        table.add_row(
            *cells(number, row),
            style="bold green" if row is made.best else "dim" if not row.possible else "",
        )
    for note in made.notes:
        out.print(note, highlight=False, soft_wrap=True)
    out.print(table)
    out.print(made.reason, style="bold", highlight=False, soft_wrap=True)
    if made.best is not None:
        index = made.rows.index(made.best)
        out.print(
            f"\n{shlex.join(commands[index])}\n", highlight=False, soft_wrap=True, markup=False
        )
        out.print(
            f"--submit {index + 1} submits it; --submit N another row; --json has every row's "
            "command.",
            highlight=False,
        )


def cells(number: int, row: Row) -> list[str]:
    """One row of the table."""
    offer = row.offer
    shape = (
        f"{offer.nodes} x {offer.gpus_per_node} {offer.gpu}"
        if offer.whole_nodes
        else f"1 {offer.gpu}"
    )
    start = [str(number), shape, offer.partition, str(offer.free)]
    batch = (
        f"{row.batches.global_batch} = {offer.gpus} x {row.batches.rank_batch}"
        if row.batches
        else "-"
    )
    if row.batches and row.batches.accumulation > 1:
        batch += f" x {row.batches.accumulation}"
    if not row.possible:
        return [*start, "-", "-", "-", "-", "-", "-", batch, "-", "; ".join(row.refusals)]
    assert row.wait and row.rate and row.training and row.total and row.epoch
    assert row.gpu_hours is not None and row.chance is not None
    wait = "now" if row.wait.expected <= 60 else span(row.wait.expected)
    slow, fast = row.rate.range
    starts_note = f" in {row.segments}" if row.segments and row.segments > 1 else ""
    return [
        *start,
        wait,
        f"{_figures(row.rate.samples_per_s)} ({_figures(slow)}-{_figures(fast)})",
        span(row.epoch),
        span(row.training.expected) + starts_note,
        f"{span(row.total.expected)} ({span(row.total.low)} to {span(row.total.high)})",
        _figures(row.gpu_hours),
        batch,
        f"{row.chance:.0%}",
        "; ".join(row.remarks),
    ]


def _figures(value: float) -> str:
    """Two digits that count: more would claim too much."""
    if value <= 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(value)))
    return (
        f"{value:.{digits}f}" if value < 100 else f"{round(value, -int(math.log10(value)) + 1):.0f}"
    )


def _as_json(made: Plan, commands: Sequence[Sequence[str]], source: str) -> dict[str, object]:
    rows = []
    for number, (row, command) in enumerate(zip(made.rows, commands, strict=True), 1):
        content = asdict(row)
        content["offer"].pop("node")
        rows.append(
            {"row": number, "possible": row.possible, **content, "command": shlex.join(command)}
        )
    return {
        "cluster": source,
        "aim": made.aim,
        "recommended": made.rows.index(made.best) + 1 if made.best else None,
        "reason": made.reason,
        "notes": list(made.notes),
        "rows": rows,
    }


def _show_history(checks: Sequence[history.Check], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(found) for found in checks], indent=1))
        return
    out = console()
    from rich.table import Table

    table = Table("run", "shape", "from", header_style="bold")
    for name in (
        "samples/s predicted",
        "measured",
        "error",
        "wait predicted",
        "was",
        "total predicted",
        "was",
    ):
        table.add_column(name, justify="right")
    for found in checks:
        times = (
            found.predicted_wait,
            found.actual_wait,
            found.predicted_total,
            found.actual_total,
        )
        table.add_row(
            found.run,
            found.shape,
            found.source,
            _figures(found.predicted_rate),
            _or_dash(found.actual_rate, _figures),
            _or_dash(found.error, lambda error: f"{math.expm1(error):+.0%}"),
            *(_or_dash(value, span) for value in times),
        )
    out.print(table)
    errors = [found for found in checks if found.error is not None]
    if errors:
        held = sum(abs(found.error or 0.0) <= RANGE * found.spread for found in errors)
        out.print(
            f"{held} of {len(errors)} measured rates were in their predicted range (80 % should "
            "be).",
            highlight=False,
        )
    else:
        out.print(
            "No finished run has a prediction yet: convoy plan --submit N writes one.",
            highlight=False,
        )


def _or_dash(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)
