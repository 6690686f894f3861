"""What the charts of a report hold, and a run's summary in words. Standard library only."""

from collections.abc import Iterator, Sequence
from typing import Any

from convoy.run import timeline
from convoy.run.hints import SLOW_RANK
from convoy.run.story import EPDMS, Point, Story
from convoy.run.timeline import Timeline, span

# Of Okabe and Ito: told apart by colour-blind eyes. report.html has the same.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SERIES = (
    ("loss", "Loss", "train/loss", "", False),
    ("val-loss", "Validation loss", "val/loss", "", False),
    ("ade", "ADE on held-out logs", "val/ade", " m", False),
    ("fde", "FDE on held-out logs", "val/fde", " m", False),
    ("epdms", "EPDMS, scored beside the training", EPDMS, "", False),
    ("rate", "Throughput", "train/samples_per_s", " samples/s", True),
    ("wait", "Share of time that ranks wait for data", "train/data_wait", "", True),
)


def summary(run: Story, times: Timeline) -> str:
    """The run in two or three sentences."""
    parts = []
    step, steps = run.progress.get("step"), run.progress.get("steps")
    trained = (
        f" at step {step:,} of {steps:,}"
        if isinstance(step, int) and isinstance(steps, int)
        else ""
    )
    state = "Finished" if run.is_finished else f"Not finished{trained}"
    parts.append(f"{state} after {span(times.end)}" if times.parts else state)
    if times.queued > 1:
        parts[-1] += f", {span(times.queued)} of it in the queue"
    if times.starts > 1:
        stops = "; ".join(f"({number}) {stop}" for number, stop in enumerate(times.stops, 1))
        parts.append(f"{times.starts} starts: what ended the earlier ones was {stops}")
    elif times.starts:
        parts.append("One start")
    rate = run.results.get("samples_per_s") or run.progress.get("samples_per_s")
    ade = run.results.get("ade") or _last(run.metrics.get("val/ade", ()))
    figures = [f"{rate:.1f} samples/s"] if isinstance(rate, int | float) else []
    figures += [f"ADE {ade:.3f} m"] if isinstance(ade, int | float) else []
    if figures:
        parts.append(", ".join(figures))
    return ". ".join(parts) + "."


def charts(
    runs: Sequence[Story], times: Sequence[Timeline], points: int
) -> Iterator[dict[str, Any]]:
    """What report.html draws: `lines`, `bars` and one `timeline`, each with a text for ears."""
    if any(time.parts for time in times):
        yield _timeline_chart(runs, times)
    for identifier, title, name, unit, zero in SERIES:
        found = [(run, run.metrics.get(name, ())) for run in runs]
        series = [
            {"name": run.name if len(runs) > 1 else "", "points": thin(values, points)}
            for run, values in found
            if values
        ]
        if series:
            marks = _restarts(runs[0].metrics.get("train/loss", ())) if len(runs) == 1 else []
            label = f"{title} over optimiser steps: " + "; ".join(
                _range(*pair, unit) for pair in found if pair[1]
            )
            yield {
                "kind": "lines",
                "id": identifier,
                "title": _titled(title, unit),
                "series": series,
                "unit": unit,
                "zero": zero,
                "xlabel": "step",
                "marks": marks,
                "label": label,
            }
    for run, time in zip(runs, times, strict=True):
        yield from _of_nodes(run, time, points, f" of {run.name}" if len(runs) > 1 else "")


def _timeline_chart(runs: Sequence[Story], times: Sequence[Timeline]) -> dict[str, Any]:
    rows = []
    for run, time in zip(runs, times, strict=True):
        parts = [
            {
                "from": part.begin,
                "to": part.end,
                "kind": "queue" if part.start is None else "start",
                "start": part.start or 0,
                "text": _part(part),
            }
            for part in time.parts
        ]
        marks = [
            {"at": mark.at, "text": mark.text, "bad": mark.is_bad} for mark in time.marks[-400:]
        ]
        rows.append({"name": run.name, "parts": parts, "marks": marks})
    label = "Timeline. " + " ".join(
        f"{run.name}: {summary(run, time)}" for run, time in zip(runs, times, strict=True)
    )
    return {
        "kind": "timeline",
        "id": "timeline",
        "title": "Timeline",
        "rows": rows,
        "label": label,
        "note": "Grey: in the queue. A colour for each start. Triangles: events; orange ones "
        "end or endanger a run.",
        "end": max(time.end for time in times),
    }


def _part(part: timeline.Part) -> str:
    what = "in the queue" if part.start is None else f"start {part.start + 1}"
    return f"{what} for {span(part.end - part.begin)}"


def _restarts(points: Sequence[Point]) -> list[list[Any]]:
    """Where each later start went on."""
    first: dict[int, int] = {}
    for point in points:
        first[point.start] = min(point.step, first.get(point.start, point.step))
    return [
        [step, f"start {number + 1}"]
        for number, (_, step) in enumerate(sorted(first.items()))
        if number
    ]


def _of_nodes(run: Story, time: Timeline, points: int, suffix: str) -> Iterator[dict[str, Any]]:
    slug = "".join(letter for letter in run.name if letter.isalnum())
    own = {
        rank: pace["own_s"] * 1000 for rank, pace in sorted(run.paces.items()) if pace.get("own_s")
    }
    if own:
        median = sorted(own.values())[len(own) // 2]
        bars = [
            {
                "name": f"rank {rank} on {run.paces[rank].get('host', '?')}",
                "value": round(value, 2),
                "slow": value > SLOW_RANK * median,
            }
            for rank, value in own.items()
        ]
        yield {
            "kind": "bars",
            "id": f"ranks-{slug}",
            "title": f"A rank's own time per batch, ms{suffix}",
            "bars": bars,
            "unit": " ms",
            "xlabel": "rank",
            "note": "before it meets the others; orange: slow",
            "label": f"Time per batch and rank, median {median:.0f} ms, "
            f"most {max(own.values()):.0f} ms.",
        }
    if run.parts:
        yield _parts_chart(run, slug, suffix)
    for name, title, unit, value in (
        ("memory", "Host memory", " GiB", lambda s: s["memory"] / 2**30),
        ("busy", "GPUs busy, mean of a node", " %", lambda s: _mean(g["busy"] for g in s["gpus"])),
        (
            "gpu-memory",
            "GPU memory, fullest of a node",
            " GiB",
            lambda s: max(g["memory"] for g in s["gpus"]) / 1024,
        ),
        (
            "gpu-power",
            "GPU power, mean of a node",
            " W",
            lambda s: _mean(g["power"] for g in s["gpus"]),
        ),
    ):
        series = []
        for host, samples in run.vitals.items():
            pairs = []
            for sample in samples:
                moment = timeline.seconds(sample.get("time"))
                if moment is None or (name != "memory" and not sample.get("gpus")):
                    continue
                try:
                    pairs.append([round(moment - time.origin), round(value(sample), 2)])
                except (KeyError, TypeError):
                    continue
            if pairs:
                series.append(
                    {"name": host, "points": pairs[:: max(1, len(pairs) // (points // 2))]}
                )
        if series:
            most = max(point[1] for one in series for point in one["points"])
            yield {
                "kind": "lines",
                "id": f"{name}-{slug}",
                "title": _titled(title, unit) + suffix,
                "series": series,
                "unit": unit,
                "zero": True,
                "time": True,
                "xlabel": "since it was submitted",
                "label": f"{title} per node over time, at most {most:.0f}{unit}.",
            }


PART_NAMES = {
    "data_wait": "wait for data",
    "one_piece": "one CUDA graph: forward, backward, optimizer",
    "logging": "reports and callbacks",
}


def _parts_chart(run: Story, slug: str, suffix: str) -> dict[str, Any]:
    """A step's parts as bars, the ranks' means; those of the GPU overlap the host's."""
    shown = {PART_NAMES.get(part, part): seconds for part, seconds in run.parts.items()}
    if run.communication:
        took, hidden = run.communication
        shown["all-reduce that backward hides"] = hidden
        shown["all-reduce that it does not hide"] = took - hidden
    bars: list[dict[str, Any]] = [
        {"name": name, "value": round(seconds * 1000, 2), "slow": False}
        for name, seconds in shown.items()
    ]
    step = (run.step_s or 0.0) * 1000
    most = max(bars, key=lambda bar: bar["value"])
    return {
        "kind": "bars",
        "id": f"parts-{slug}",
        "title": f"Where a step's time goes, ms{suffix}",
        "bars": bars,
        "unit": " ms",
        "xlabel": "part",
        "note": f"of {step:.1f} ms; on a GPU its own time, which overlaps the host's",
        "label": f"Parts of a step of {step:.1f} ms; the longest is {most['name']}, "
        f"{most['value']:.1f} ms.",
    }


def thin(values: Sequence[Point], most: int) -> list[list[float]]:
    """At most `most` points: means of neighbours of one start, so that no peak is made up."""
    size = -(-len(values) // most)
    found = []
    for index in range(0, len(values), size):
        group = values[index : index + size]
        group = [point for point in group if point.start == group[0].start]
        mean = sum(point.value for point in group) / len(group)
        found.append([group[-1].step, float(f"{mean:.5g}")])
    return found


def _range(run: Story, values: Sequence[Point], unit: str) -> str:
    numbers = [point.value for point in values]
    return f"{run.name} from {numbers[0]:.4g} to {numbers[-1]:.4g}{unit}, least {min(numbers):.4g}"


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _last(values: Sequence[Point]) -> float | None:
    return values[-1].value if values else None


def _titled(title: str, unit: str) -> str:
    return f"{title}, {unit.strip()}" if unit else title
