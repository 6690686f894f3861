"""Where the time of traced steps went, from a trace in Chrome's format that torch.profiler wrote.
Standard library only.

On a GPU the device's own time counts: what kernels on all its streams cover, NCCL's beside the
others, and why it idles in between. Without a GPU it is the time of torch's operators on the host.
"""

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.run.intervals import Span, complement, intersection, length, union

RANGE = "step: "  # begins the names of a step's parts, which convoy.training.timers writes
FETCH = f"{RANGE}data_wait"  # a step begins with it
TOP = 12
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver")

# The first that fits a kernel's or an operator's name.
KINDS = (
    ("communication", r"^(nccl|gloo:|c10d::|Memcpy PtoP)|all_?reduce|record_param_comms"),
    ("copies", r"^Mem(cpy|set)|aten::copy_|aten::_to_copy|aten::(clone|contiguous)$"),
    ("optimizer", r"adam|multi_tensor_apply|_foreach_|sgd"),
    ("attention", r"fmha|flash|attention|sdpa"),
    ("convolution", r"conv|dgrad|wgrad|fprop|winograd|implicit_gemm"),
    ("matrix products", r"gemm|cublas|cutlass|nvjet|addmm|aten::b?mm|matmul|linear"),
    ("normalization", r"norm|bn_(fw|bw)|welford"),
    ("pooling", r"pool"),
    ("resizing", r"upsample|interpolate|grid_sampl"),
    ("indexing and sorting", r"index|scatter|gather|sort|topk|embedding"),
    ("reductions", r"reduce|softmax|triton_(red|per)|sum|mean"),
    ("elementwise", r"elementwise|vectorized|triton|aten::(add|mul|relu|div|sub|sigmoid|neg)"),
)
_KINDS = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in KINDS]


@dataclass(frozen=True)
class Kernel:
    """Kernels (or operators) of one name; milliseconds of a step."""

    name: str
    kind: str
    ms: float
    calls: float


@dataclass(frozen=True)
class Breakdown:
    """A step of a trace, in milliseconds, means over `steps`.

    With a GPU `compute` + `copies` + `communication_shown` + `waits_for_data` + `host_gaps` is
    the whole step; without one the first three come from operators' names, and `host_gaps` is the
    rest of the host's time.
    """

    steps: int
    step: float
    on_gpu: bool
    one_graph: bool  # the step is launched as a CUDA graph
    compute: float
    copies: float  # that nothing else covers
    communication: float
    communication_hidden: float  # behind kernels that compute
    waits_for_data: float
    host_gaps: float
    host_parts: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)
    top: tuple[Kernel, ...] = ()

    @property
    def communication_shown(self) -> float:
        return self.communication - self.communication_hidden

    @property
    def share_hidden(self) -> float | None:
        """Of the communication, what the backward pass hides; None without communication."""
        return self.communication_hidden / self.communication if self.communication else None

    def verdict(self) -> str:
        """What bounds the step, in a sentence."""
        return _verdict(self)[0]

    def advice(self) -> str:
        """What to change."""
        return _verdict(self)[1]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "communication_shown": self.communication_shown,
            "share_hidden": self.share_hidden,
            "verdict": self.verdict(),
            "advice": self.advice(),
        }


def read(path: Path) -> Breakdown:
    """Of a trace file (.json or .json.gz); ConvoyError for one that is cut or holds no step."""
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        events = json.loads(text)["traceEvents"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConvoyError(
            f"{path} cannot be read as a trace ({error}); a file is expected that torch.profiler "
            "wrote in Chrome's format: make one with convoy profile."
        ) from error
    return breakdown(events)


def breakdown(events: Iterable[Mapping[str, Any]]) -> Breakdown:
    """Of a trace's events. Raises ConvoyError where there is no whole step."""
    whole = [event for event in events if event.get("ph") == "X"]
    starts = sorted(event["ts"] for event in whole if event["name"] == FETCH and _is_host(event))
    if len(starts) < 2:
        raise ConvoyError(
            f"The trace holds no whole step: ranges named {FETCH!r} are expected, which convoy "
            "profile writes. Profile more steps (--steps)."
        )
    window, steps = (starts[0], starts[-1]), len(starts) - 1
    inside = [event for event in whole if window[0] <= event["ts"] < window[1]]
    ranges = _ranges(inside)
    host_parts = {
        part: length(spans) / steps / 1000 for part, spans in ranges.items() if part != "batch"
    }
    device, device_window = _on_device(whole, window)
    if device:
        return _of_device(device, inside, device_window, steps, ranges, host_parts)
    return _of_host(inside, window, steps, ranges, host_parts)


def _on_device(
    whole: Sequence[Mapping[str, Any]], window: Span
) -> tuple[list[Mapping[str, Any]], Span]:
    """What the host launched in `window`, and when that ran: the host can be steps ahead.

    It ran from its first kernel to the first one that was launched after it, both on the stream
    with the most work; others bring later batches.
    """
    launches = {
        event["args"]["correlation"]: event["ts"]
        for event in whole
        if event.get("cat") in LAUNCH_CATEGORIES and "correlation" in event.get("args", {})
    }
    events = [event for event in whole if event.get("cat") in DEVICE_CATEGORIES]
    launched = [
        launches.get(event.get("args", {}).get("correlation"), event["ts"]) for event in events
    ]
    device = [
        event for event, at in zip(events, launched, strict=True) if window[0] <= at < window[1]
    ]
    work: dict[Any, float] = {}
    for event in device:
        stream = event.get("args", {}).get("stream")
        work[stream] = work.get(stream, 0.0) + event["dur"]
    if not work or not launches:
        return device, window
    main = max(work, key=lambda stream: work[stream])
    mine = [event for event in device if event.get("args", {}).get("stream") == main]
    later = [
        event["ts"]
        for event, at in zip(events, launched, strict=True)
        if at >= window[1] and event.get("args", {}).get("stream") == main
    ]
    ended = max(event["ts"] + event["dur"] for event in mine)
    return device, (min(event["ts"] for event in mine), min(later, default=ended))


def _of_device(
    device: Sequence[Mapping[str, Any]],
    inside: Sequence[Mapping[str, Any]],
    window: Span,
    steps: int,
    ranges: Mapping[str, Sequence[Span]],
    host_parts: Mapping[str, float],
) -> Breakdown:
    kinds: dict[str, list[Span]] = {"compute": [], "copies": [], "communication": []}
    for event in device:
        kind = kind_of(event)
        kinds[kind if kind in kinds else "compute"].append(_until(window[1], event))
    compute, communication = union(kinds["compute"]), union(kinds["communication"])
    busy = union([*compute, *communication])
    copies = length(union([*busy, *kinds["copies"]])) - length(busy)
    covered = union([*busy, *kinds["copies"]])
    idle = complement(covered, window)
    waits = length(intersection(idle, union(ranges.get("data_wait", ()))))
    return Breakdown(
        steps,
        _per_step(window[1] - window[0], steps),
        on_gpu=True,
        one_graph=any("GraphLaunch" in event["name"] for event in inside if _is_host(event)),
        compute=_per_step(length(compute), steps),
        copies=_per_step(copies, steps),
        waits_for_data=_per_step(waits, steps),
        host_gaps=_per_step(length(idle) - waits, steps),
        host_parts=host_parts,
        **_exchange(communication, compute, steps),
        **_kernels(((event, event["dur"]) for event in device), steps),
    )


def _of_host(
    inside: Sequence[Mapping[str, Any]],
    window: Span,
    steps: int,
    ranges: Mapping[str, Sequence[Span]],
    host_parts: Mapping[str, float],
) -> Breakdown:
    """Operators by their own time, less that of the operators that they call."""
    own = _own_times(
        [
            event
            for event in inside
            if event.get("cat") == "cpu_op" or event["name"].startswith("gloo:")
        ]
    )
    found = _kernels(own, steps)
    kinds = found["kinds"]
    exchanged = [_until(window[1], event) for event in inside if kind_of(event) == "communication"]
    computed = [
        _until(window[1], event)
        for event, _ in own
        if kind_of(event) not in {"communication", "copies"}
    ]
    # What a loader without workers computes is waiting for data all the same.
    training = complement(union(ranges.get("data_wait", ())), window)
    communication, compute = union(exchanged), intersection(union(computed), training)
    exchange = _exchange(communication, compute, steps)
    step = _per_step(window[1] - window[0], steps)
    waits = host_parts.get("data_wait", 0.0)
    computing = _per_step(length(compute), steps)
    shown = exchange["communication"] - exchange["communication_hidden"]
    copies = min(kinds.get("copies", 0.0), max(0.0, step - computing - shown - waits))
    return Breakdown(
        steps,
        step,
        on_gpu=False,
        one_graph=False,
        compute=computing,
        copies=copies,
        waits_for_data=waits,
        host_gaps=max(0.0, step - computing - shown - waits - copies),
        host_parts=host_parts,
        **exchange,
        **found,
    )


def _until(end: float, event: Mapping[str, Any]) -> Span:
    """When the event was, up to the end of the window."""
    return event["ts"], min(event["ts"] + event["dur"], end)


def _exchange(communication: Sequence[Span], compute: Sequence[Span], steps: int) -> dict[str, Any]:
    """The time of communication, and how much of it computing hides."""
    return {
        "communication": _per_step(length(communication), steps),
        "communication_hidden": _per_step(length(intersection(compute, communication)), steps),
    }


def kind_of(event: Mapping[str, Any]) -> str:
    """The kind of a kernel, copy or operator, by its name."""
    name = event["name"]
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def _kernels(timed: Iterable[tuple[Mapping[str, Any], float]], steps: int) -> dict[str, Any]:
    kinds: dict[str, float] = {}
    names: dict[tuple[str, str], list[float]] = {}
    for event, duration in timed:
        kind = kind_of(event)
        kinds[kind] = kinds.get(kind, 0.0) + duration / steps / 1000
        names.setdefault((event["name"], kind), []).append(duration)
    top = sorted(names.items(), key=lambda item: -sum(item[1]))[:TOP]
    return {
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "top": tuple(
            Kernel(name, kind, sum(durations) / steps / 1000, len(durations) / steps)
            for (name, kind), durations in top
        ),
    }


def _own_times(events: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """Each operator with its time less that of those within it on the same thread."""
    found: list[tuple[Mapping[str, Any], float]] = []
    threads: dict[Any, list[Mapping[str, Any]]] = {}
    for event in events:
        threads.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    for of_thread in threads.values():
        ordered = sorted(of_thread, key=lambda event: (event["ts"], -event["dur"]))
        own = [float(event["dur"]) for event in ordered]
        stack: list[int] = []
        for index, event in enumerate(ordered):
            while stack and ordered[stack[-1]]["ts"] + ordered[stack[-1]]["dur"] <= event["ts"]:
                stack.pop()
            if stack:
                own[stack[-1]] -= event["dur"]
            stack.append(index)
        found += [(event, max(0.0, left)) for event, left in zip(ordered, own, strict=True)]
    return found


def _ranges(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for event in events:
        if event["name"].startswith(RANGE) and _is_host(event):
            part = event["name"].removeprefix(RANGE)
            found.setdefault(part, []).append((event["ts"], event["ts"] + event["dur"]))
    return found


def _is_host(event: Mapping[str, Any]) -> bool:
    return not str(event.get("cat", "")).startswith("gpu_") and event.get("cat") != "kernel"


def _per_step(microseconds: float, steps: int) -> float:
    return microseconds / steps / 1000


# --- words

_DATA, _SHOWN, _GAPS, _COPIES = 0.1, 0.15, 0.15, 0.1  # shares of a step that are worth a word


def _verdict(found: Breakdown) -> tuple[str, str]:
    step = found.step
    device = "the GPU" if found.on_gpu else "the rank"
    if found.waits_for_data > _DATA * step:
        return (
            f"Bound by data: for {found.waits_for_data / step:.0%} of a step {device} waits for "
            "the next batch.",
            "Pack the cache into shards (convoy prepare), raise dataloader.params.num_workers, or "
            "copy the shards to the node's own disk (data.stage=…).",
        )
    if found.communication_shown > _SHOWN * step:
        return (
            f"Bound by communication: {found.communication_shown / step:.0%} of a step is "
            f"all-reduce that the backward pass does not hide (it hides {found.share_hidden:.0%}).",
            "A larger batch per rank or more accumulation makes fewer of them; fewer nodes, or a "
            "faster interface (docs/launch.md), make them shorter.",
        )
    if found.on_gpu and found.host_gaps > _GAPS * step:
        graph = "" if found.one_graph else "speed=max makes the step one CUDA graph; "
        return (
            f"Bound by the host: for {found.host_gaps / step:.0%} of a step the GPU has nothing "
            "to do and no batch is missing.",
            f"{graph}a larger dataloader.params.batch_size gives each launch more work.",
        )
    if found.copies > _COPIES * step:
        return (
            f"Bound by copies: {found.copies / step:.0%} of a step is copies beside which nothing "
            "is computed.",
            "speed_switches.prefetch=true copies the next batch meanwhile.",
        )
    kinds = {name: ms for name, ms in found.kinds.items() if name != "communication"}
    most = next(iter(kinds), "other")
    share = kinds.get(most, 0.0) / (sum(kinds.values()) or 1.0)
    doing = "The GPU computes" if found.on_gpu else "The rank computes"
    levers = (
        "The batch is fed as fast as it is used: what is left are fewer or cheaper kernels. "
        "speed=max merges the small ones; a lower precision or a smaller backbone cuts the large."
    )
    return (
        f"Bound by computing: {doing.lower()} for {found.compute / step:.0%} of a step; the "
        f"largest part is {most}, {share:.0%} of the time of all kernels.",
        levers,
    )
