"""`convoy list`: runs and jobs in one table, the newest first."""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.commands.console import console
from convoy.errors import ExitCode
from convoy.host import locate, site
from convoy.host.locate import Found
from convoy.host.view import view
from convoy.run import story
from convoy.run.timeline import span

HOUR = 3600


@dataclass(frozen=True)
class Line:
    """One job, one run, or a job with its run."""

    run: str
    job: str
    state: str
    agent: str
    step: str
    ade: float | None
    samples_per_s: float | None
    left_s: float | None
    age_s: float | None
    run_dir: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--count", type=int, default=20, help="how many runs (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    experiments = site.load(site.find_checkout()).experiments
    queue, problem = locate.own_jobs()
    lines, seen = [], set()
    for job in queue:
        root = locate.run_of(job.id, experiments)
        if root is None and not job.name.startswith("convoy"):
            continue
        seen.add(root)
        lines.append(_line(Found(job.id, job, root)))
    for root in story.find(experiments)[: args.count]:
        if root not in seen:
            lines.append(_line(Found(locate.job_of(root), None, root, problem)))
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        _show(lines[: args.count], experiments, problem)
    return ExitCode.FINISHED


def _line(found: Found) -> Line:
    shown = view(found)
    facts, run_ = shown.progress, shown.run
    step = f"{facts['step']}/{facts['steps']}" if "step" in facts and "steps" in facts else ""
    ade = run_.metrics.get("val/ade") if run_ else None
    heard = facts.get("time") or (_modified(found.root) if found.root else None)
    return Line(
        run_.name if run_ else "",
        found.id or "",
        shown.state.lower(),
        run_.agent if run_ else "",
        step,
        ade[-1].value if ade else None,
        facts.get("samples_per_s"),
        facts.get("seconds_left") if shown.state == "RUNNING" else None,
        time.time() - heard if isinstance(heard, int | float) else None,
        str(found.root) if found.root else None,
    )


def _modified(root: Path) -> float | None:
    try:
        return root.stat().st_mtime
    except OSError:
        return None


def _show(lines: list[Line], experiments: Path, problem: str) -> None:
    out = console()
    from rich import box
    from rich.table import Table

    if problem:
        out.print(f"Runs only: {problem}", style="yellow", highlight=False)
    if not lines:
        out.print(
            f"No job of yours is queued, and there is no run below {experiments}.", highlight=False
        )
        return
    table = Table("run", "job", "state", "agent", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "ADE, m", "samples/s", "left", "last report"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            line.run,
            line.job,
            line.state,
            line.agent,
            line.step,
            _or_empty(line.ade, "{:.3f}"),
            _or_empty(line.samples_per_s, "{:.1f}"),
            span(line.left_s) if line.left_s is not None else "",
            f"{span(line.age_s)} ago" if line.age_s is not None else "",
        )
    out.print(table)


def _or_empty(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
