"""A run on one page: report.html, which needs nothing beside itself. Standard library only.

report.html in this folder draws the charts; this module says what is in them. A part whose files
are missing is left out.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from convoy.run import charts, story, timeline
from convoy.run.charts import COLOURS, summary
from convoy.run.hints import hints
from convoy.run.layout import RunDirectory
from convoy.run.story import Point, Story
from convoy.run.timeline import Timeline, span

TEMPLATE = Path(__file__).with_name("report.html")
POINTS = 1200  # of a curve: more than pixels
MOST_BYTES = 2_000_000
BASELINES = ("human_agent", "constant_velocity_agent")  # scored beside an agent


def write(path: Path, runs: Sequence[Story]) -> Path:
    """Write the page of one run, or of several side by side, and return its path."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page(runs))
    temporary.replace(path)
    return path


def leave(run: RunDirectory) -> None:
    """Write a run's page into its directory, where its start has ended and nothing more may go
    wrong."""
    with contextlib.suppress(Exception):
        write(run.report, [story.read(run.root)])


def page(runs: Sequence[Story]) -> str:
    """The page as text, at most `MOST_BYTES` long."""
    for points in (POINTS, POINTS // 4, POINTS // 16):
        text = _page(runs, points, pictures=points == POINTS)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def _page(runs: Sequence[Story], points: int, pictures: bool) -> str:
    times = [timeline.timeline(run) for run in runs]
    drawn = list(charts.charts(runs, times, points))
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    body = "\n".join(_body(title, runs, times, drawn, pictures))
    shown = [
        {name: value for name, value in chart.items() if name not in {"title", "note"}}
        for chart in drawn
    ]
    data = json.dumps({"charts": shown}, separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )
    text = TEMPLATE.read_text().replace("@TITLE@", escape(title))
    head, _, tail = text.partition("@BODY@")
    return head + body + tail.replace("@DATA@", data)


def _body(
    title: str,
    runs: Sequence[Story],
    times: Sequence[Timeline],
    drawn: Sequence[Mapping[str, Any]],
    pictures: bool,
) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    for run, time in zip(runs, times, strict=True):
        name = f"<strong>{escape(run.name)}</strong>: " if len(runs) > 1 else ""
        yield f'<p class="lead">{name}{escape(summary(run, time))}</p>'
        found = hints(run)
        if found:
            yield (
                '<ul class="hints">'
                + "".join(f"<li>{escape(hint)}</li>" for hint in found)
                + "</ul>"
            )
    for chart in drawn:
        if chart["kind"] == "timeline":
            yield _figure(chart)
    yield (
        '<div class="grid">'
        + "".join(_figure(chart) for chart in drawn if chart["kind"] != "timeline")
        + "</div>"
    )
    yield from _predictions(runs, times)
    if pictures:
        yield from _trajectories(runs)
    yield from _scores(runs, pictures)
    yield from _table("Configuration", [run.config for run in runs], runs)
    yield from _table(
        "Last start", [flat(run.launches[-1]) if run.launches else {} for run in runs], runs
    )
    yield from _table("Manifest", [flat(run.manifest) for run in runs], runs)
    yield from _table("Results", [flat(run.results) for run in runs], runs)
    for run, time in zip(runs, times, strict=True):
        rows = "".join(
            f"<tr><td class=n>{span(mark.at)}</td><td>{escape(mark.text)}</td></tr>"
            for mark in time.marks[-200:]
        )
        if rows:
            yield (
                f"<details><summary>Events of {escape(run.name)}</summary><div class=scroll><table>"
                f"<tr><th>after</th><th>event</th></tr>{rows}</table></div></details>"
            )


def _figure(chart: Mapping[str, Any]) -> str:
    note = f" <small>{escape(chart['note'])}</small>" if chart.get("note") else ""
    keys = ""
    if chart["kind"] == "lines" and len(chart["series"]) > 1:
        keys = (
            " <small>"
            + " ".join(
                f'<span class="key" style="background:{COLOURS[i % len(COLOURS)]}"></span>'
                + escape(series["name"])
                for i, series in enumerate(chart["series"])
            )
            + "</small>"
        )
    caption = f"<figcaption>{escape(chart['title'])}{note}{keys}</figcaption>"
    return f'<figure id="{chart["id"]}">{caption}</figure>'


def _predictions(runs: Sequence[Story], times: Sequence[Timeline]) -> Iterator[str]:
    rows = []
    for run, time in zip(runs, times, strict=True):
        made = run.prediction
        if not made.get("samples_per_s"):
            continue
        rate = run.results.get("samples_per_s") or _median(
            run.metrics.get("train/samples_per_s", ())
        )
        first = time.parts[0] if time.parts else None
        waited = first.end - first.begin if first and first.start is None else 0.0
        actual = (
            f"{rate:.1f}" if rate else "-",
            span(waited) if time.parts else "-",
            span(time.end) if run.is_finished else f"{span(time.end)} so far",
        )
        told = (
            f"{made['samples_per_s']:.1f}",
            _spans(made.get("wait_s")),
            _spans(made.get("total_s")),
        )
        for what, said, was in zip(("samples/s", "first wait", "total"), told, actual, strict=True):
            rows.append((run.name, what, said, was))
    if rows:
        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        yield (
            "<h2>Predicted and actual</h2><div class=scroll><table><tr><th>run</th><th></th>"
            f"<th>predicted</th><th>actual</th></tr>{cells}</table></div>"
        )


def _trajectories(runs: Sequence[Story]) -> Iterator[str]:
    for run in runs:
        try:
            content = run.run.trajectories.read_bytes()
        except OSError:
            continue
        if len(content) > MOST_BYTES // 4:
            continue
        picture = base64.b64encode(content).decode()
        yield (
            f"<h2>Sample trajectories{escape(f' of {run.name}' if len(runs) > 1 else '')}</h2>"
            "<img alt=\"Bird's-eye views of held-out samples: true, predicted and "
            "constant-velocity "
            f'trajectories" src="data:image/png;base64,{picture}">'
        )


def _scores(runs: Sequence[Story], pictures: bool) -> Iterator[str]:
    """A row for each scoring, and the worst scenes of the newest."""
    rows = []
    for run in runs:
        for name, scored in run.scorings.items():
            beside = scored.get("baselines") or {}
            figures = [
                scored.get("metrics") or {},
                *((beside.get(agent) or {}).get("metrics") or {} for agent in BASELINES),
            ]
            scenes = f"{scored.get('tokens', '-')} ({len(scored.get('failed') or ())} failed)"
            cells = (run.name, name, *(_epdms(each) for each in figures), scenes)
            rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    if not rows:
        return
    head = "".join(
        f"<th>{name}</th>"
        for name in ("run", "scored", "EPDMS, %", "human", "constant velocity", "scenes")
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    yield f"<h2>NAVSIM's score</h2><div class=scroll><table><tr>{head}</tr>{body}</table></div>"
    for run in runs if pictures else ():
        newest = max(run.run.scores.glob("*/*/worst.jpg"), key=_age, default=None)
        content = newest.read_bytes() if newest else b""
        if newest and len(content) <= MOST_BYTES // 4:
            picture = base64.b64encode(content).decode()
            of = f"{newest.parent.parent.name}/{newest.parent.name}"
            if len(runs) > 1:
                of = f"{run.name}, {of}"
            yield (
                f"<h2>Worst scenes of {escape(of)}</h2>"
                '<img alt="The scenes with the lowest scores: front camera, and the planned and '
                'the human trajectory from above" '
                f'src="data:image/jpeg;base64,{picture}">'
            )


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _epdms(metrics: Mapping[str, Any]) -> str:
    score = metrics.get("score") or {}
    if not isinstance(score.get("mean"), int | float):
        return "-"
    mean = f"{100 * score['mean']:.2f}"
    if not isinstance(score.get("low"), int | float):
        return mean
    return f"{mean} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _table(
    title: str, columns: Sequence[Mapping[str, str]], runs: Sequence[Story]
) -> Iterator[str]:
    keys = list(dict.fromkeys(key for column in columns for key in column))
    if not keys:
        return
    rows = []
    for key in keys:
        values = [str(column.get(key, "")) for column in columns]
        mark = " class=differs" if len(set(values)) > 1 else ""
        rows.append(
            f"<tr{mark}><td>{escape(key)}</td>"
            + "".join(f"<td>{escape(v[:500])}</td>" for v in values)
            + "</tr>"
        )
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    yield (
        f"<details><summary>{title}</summary><div class=scroll><table><tr><th></th>{head}</tr>"
        f"{''.join(rows)}</table></div></details>"
    )


def flat(content: Any, before: str = "") -> dict[str, str]:
    """Leaves of nested JSON as dotted key -> text."""
    if isinstance(content, Mapping):
        found: dict[str, str] = {}
        for key, value in content.items():
            found |= flat(value, f"{before}.{key}" if before else str(key))
        return found
    text = " ".join(map(str, content)) if isinstance(content, list) else str(content)
    return {before: text}


def _median(values: Sequence[Point]) -> float | None:
    numbers = sorted(point.value for point in values)
    return numbers[len(numbers) // 2] if numbers else None


def _spans(values: Any) -> str:
    if not isinstance(values, list) or len(values) != 3:
        return "-"
    return f"{span(values[1])} ({span(values[0])} to {span(values[2])})"
