"""`convoy watch`: one job, live: why it waits, where it is, how its nodes fare, what to change."""

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.host import locate, site
from convoy.host.locate import Found
from convoy.host.view import View, view
from convoy.run.charts import PART_NAMES
from convoy.run.timeline import seconds, span, words

if TYPE_CHECKING:  # rich takes a tenth of a second, which --help does not need
    from rich.console import RenderableType

EVERY = 2.0  # seconds between looks at the run's files
SLURM_EVERY = 15.0  # and at the queue: a controller serves many
EVENTS = 5
COLOURS = {"RUNNING": "green", "FINISHED": "green", "PENDING": "yellow", "UNKNOWN": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", help="job id or run directory (default: your newest job or run)"
    )
    parser.add_argument(
        "--once", action="store_true", help="show it once and end (also where there is no terminal)"
    )
    parser.add_argument("--json", action="store_true", help="once, as JSON")


def run(args: argparse.Namespace) -> int:
    experiments = site.load(site.find_checkout()).experiments
    found = locate.find(args.job, experiments)
    if args.json:
        print(json.dumps(_as_json(view(found)), indent=1, default=str))
        return ExitCode.FINISHED
    if args.once or not sys.stdout.isatty():
        console().print(render(view(found)))
        return ExitCode.FINISHED
    _live(found, args.job or found.id or str(found.root), experiments)
    return ExitCode.FINISHED


def _live(found: Found, target: str, experiments: Path) -> None:
    """Until the run ends or Ctrl-C. SLURM is asked beside it: a controller that is gone takes ten
    seconds to be noticed, and the files go on meanwhile."""
    from rich.live import Live

    answers: list[Found] = []

    def ask() -> None:
        with contextlib.suppress(ConvoyError):  # between two starts the job may be nowhere
            answers.append(locate.find(target, experiments))

    asking, asked = threading.Thread(), time.monotonic()
    try:
        with Live(console=console(), auto_refresh=False, vertical_overflow="visible") as live:
            while (shown := view(found)).state not in {"FINISHED", "ENDED"}:
                live.update(render(shown), refresh=True)
                time.sleep(EVERY)
                if answers:
                    found = answers.pop()
                if not asking.is_alive() and time.monotonic() - asked > SLURM_EVERY:
                    asking, asked = threading.Thread(target=ask, daemon=True), time.monotonic()
                    asking.start()
            live.update(render(shown), refresh=True)
    except KeyboardInterrupt:
        pass


def render(shown: View) -> "RenderableType":
    """The screen, for any width."""
    from rich.console import Group
    from rich.text import Text

    colour = COLOURS.get(shown.state, "red")
    parts: list[RenderableType] = [
        Text(shown.title, style="bold"),
        Text.assemble((shown.state, f"bold {colour}"), "  ", shown.standing),
    ]
    if shown.slurm:
        parts.append(Text(f"Only the run's files are shown: {shown.slurm}", style="yellow"))
    parts += _progress(shown)
    parts += _nodes(shown)
    if shown.run and shown.run.events:
        parts += [Text(""), *map(Text, _events(shown.run.events[-EVENTS:]))]
    if shown.tail:
        parts += [
            Text(""),
            Text("\n".join(shown.tail), style="red", overflow="ellipsis", no_wrap=True),
        ]
    if shown.hints:
        parts += [Text(""), *(Text(f"* {hint}", style="yellow") for hint in shown.hints)]
    return Group(*parts)


def _progress(shown: View) -> "Iterator[RenderableType]":
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    facts = shown.progress
    step, steps = facts.get("step"), facts.get("steps")
    if not isinstance(step, int) or not steps:
        return
    yield Text("")
    yield Padding(ProgressBar(total=steps, completed=step), (0, 0))
    said = [f"step {step:,} of {steps:,} ({step / steps:.0%})"]
    if "epoch" in facts:
        said.append(f"epoch {facts['epoch']}")
    for name, form in (("loss", "loss {:.4g}"), ("samples_per_s", "{:.1f} samples/s")):
        if isinstance(facts.get(name), int | float):
            said.append(form.format(facts[name]))
    waiting = shown.run.data_wait if shown.run else None
    if waiting is not None:
        said.append(f"waits for data {waiting:.0%}")
    if shown.run and shown.run.step_s:
        said.append(f"{shown.run.step_s * 1000:.1f} ms a step")
    ade = shown.run.metrics.get("val/ade") if shown.run else None
    if ade:
        said.append(f"ADE {ade[-1].value:.3f} m")
    yield Text("  ".join(said))
    if shown.run and shown.run.parts:
        parts = sorted(shown.run.parts.items(), key=lambda pair: -pair[1])
        longest = [f"{PART_NAMES.get(part, part)} {value * 1000:.1f}" for part, value in parts[:5]]
        yield Text(f"of a step, ms: {', '.join(longest)}")
    if shown.state == "FINISHED":
        return
    said = []
    if isinstance(facts.get("seconds_left"), int | float):
        said.append(f"ends in about {span(facts['seconds_left'])}")
    if shown.left is not None:
        said.append(f"the time limit in {span(shown.left)}")
    if said:
        yield Text("; ".join(said))


def _nodes(shown: View) -> "Iterator[RenderableType]":
    from rich import box
    from rich.table import Table

    if shown.run is None or not shown.run.vitals:
        return
    newest = {host: samples[-1] for host, samples in shown.run.vitals.items()}
    power = any("power" in gpu for last in newest.values() for gpu in last.get("gpus") or ())
    table = Table(
        "node",
        "GPUs busy, %",
        *(["GPU power, W"] if power else []),
        "GPU memory, GiB",
        "host memory, GiB",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for host, last in newest.items():
        gpus = last.get("gpus") or []
        full = max((gpu.get("memory", 0) for gpu in gpus), default=0)
        total = max((gpu.get("memory_total", 0) for gpu in gpus), default=0)
        table.add_row(
            host,
            " ".join(str(gpu.get("busy", "?")) for gpu in gpus) or "-",
            *([" ".join(f"{gpu.get('power', 0):.0f}" for gpu in gpus) or "-"] if power else []),
            f"{full / 1024:.0f} of {total / 1024:.0f}" if total else "-",
            f"{last.get('memory', 0) / 2**30:.0f} of {last.get('memory_limit', 0) / 2**30:.0f}",
        )
    yield table


def _events(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for event in events:
        moment = seconds(event.get("time"))
        clock = f"{datetime.fromtimestamp(moment):%d %b %H:%M:%S}" if moment else ""
        yield f"{clock}  {words(event)}"


def _as_json(shown: View) -> dict[str, Any]:
    run = shown.run
    return {
        "title": shown.title,
        "state": shown.state,
        "standing": shown.standing,
        "run_dir": run.root if run else None,
        "progress": shown.progress,
        "time_limit_left_s": shown.left,
        "nodes": {host: samples[-1] for host, samples in run.vitals.items()} if run else {},
        "events": list(run.events[-EVENTS:]) if run else [],
        "results": run.results if run else {},
        "hints": list(shown.hints),
        "failing_rank": list(shown.tail),
        "slurm": shown.slurm or None,
    } | (
        {"ranks": {rank: dict(pace) for rank, pace in run.paces.items()}}
        if run and run.paces
        else {}
    )
