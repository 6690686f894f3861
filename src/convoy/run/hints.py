"""What a run's figures suggest to change, in words. Standard library only."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convoy.run.story import Story

RECENT = 12  # samples of a node that count: three minutes
DATA_BOUND = 0.15  # share of the time that ranks wait for data
IDLE, BUSY, HALF_BUSY = 10, 50, 70  # % of a GPU's time
LITTLE_MEMORY = 0.4
FULL_MEMORY = 0.9
LONG_REPORTS = 0.1  # share of a step that reports and callbacks take
LONG_CHECKPOINTS = 0.05
LONG_COPY = 0.1
SHOWN_ALL_REDUCE = 0.15  # share of a step that backward does not hide
BACKWARD = 3  # times the own time: backward costs twice forward
COMPUTING = 0.6  # of a batch's time, at least
SLOW_RANK = 1.25  # times the median rank's own time


def hints(run: Story, left: float | None = None) -> list[str]:
    """Findings, the gravest first; `left` is the rest of the job's time limit in seconds."""
    return [
        *_time_limit(run, left),
        *_memory_of_hosts(run),
        *_slow_rank(run),
        *_bound(run),
        *_parts(run),
        *_gpus(run),
    ]


def _time_limit(run: Story, left: float | None) -> Iterator[str]:
    eta = run.progress.get("seconds_left")
    if left is None or not isinstance(eta, int | float) or run.is_finished or eta <= left:
        return
    yield (
        f"The time limit will not do: {_hours(eta)} are left to train and {_hours(left)} of the "
        "limit. "
        "The run continues in the next start; a longer --time saves the wait in between."
    )


def _memory_of_hosts(run: Story) -> Iterator[str]:
    for host, samples in run.vitals.items():
        last = samples[-1]
        used, limit = last.get("memory"), last.get("memory_limit")
        if used and limit and used > FULL_MEMORY * limit:
            yield (
                f"{host} uses {used / 2**30:.0f} of {limit / 2**30:.0f} GiB of host memory: lower "
                "dataloader.params.num_workers or prefetch_factor, or ask for more with --mem."
            )


def _slow_rank(run: Story) -> Iterator[str]:
    """Of the time that each rank needs for itself, before it meets the others in a collective."""
    own = {rank: pace["own_s"] for rank, pace in run.paces.items() if pace.get("own_s")}
    if len(own) < 3:
        return
    slowest = max(own, key=lambda rank: own[rank])
    median = statistics.median(own.values())
    if own[slowest] > SLOW_RANK * median:
        host = run.paces[slowest].get("host", "?")
        yield (
            f"Rank {slowest} on {host} is slow: {own[slowest] * 1000:.0f} ms of its own a batch, "
            "the median "
            f"is {median * 1000:.0f}. All ranks wait for it; convoy doctor on {host} may say why."
        )


def _bound(run: Story) -> Iterator[str]:
    waiting = run.data_wait
    busy = _busy(run)
    workers = run.config.get("dataloader.params.num_workers", "?")
    if waiting is not None and waiting > DATA_BOUND:
        yield (
            f"Data-bound: ranks wait for data {waiting:.0%} of the time. More "
            "dataloader.params.num_workers "
            f"(now {workers}), packed shards (convoy prepare) or data.stage=… on the nodes' own "
            "disks help."
        )
    elif busy is not None and busy < HALF_BUSY and run.progress:
        yield (
            f"Host-bound: GPUs are busy {busy:.0f} % of the time and do not wait for data. A "
            "larger "
            "dataloader.params.batch_size, or speed switches that launch less (docs/speed.md), "
            "help."
        )
    if run.communication:
        return  # it was measured
    own, step = _own_and_step(run)
    work = BACKWARD * own if own else None
    waits_little = (waiting or 0) <= DATA_BOUND and _nodes(run) > 1
    if work and step and waits_little and work < COMPUTING * step:
        yield (
            f"Communication-bound: about {1 - work / step:.0%} of the time is neither forward nor "
            "backward. Fewer nodes, a faster interface (NCCL_SOCKET_IFNAME) or more accumulation "
            "help."
        )


def _parts(run: Story) -> Iterator[str]:
    """Of the timers of each step."""
    step = run.step_s
    if not step:
        return
    shares = {part: seconds / step for part, seconds in run.parts.items()}
    if shares.get("logging", 0) > LONG_REPORTS:
        yield (
            f"Reports and callbacks take {shares['logging']:.0%} of a step: a larger "
            "trainer.params.log_every_n_steps helps, or less work in the agent's own callbacks."
        )
    if shares.get("checkpoint", 0) > LONG_CHECKPOINTS:
        yield (
            f"Checkpoints hold the training up for {shares['checkpoint']:.0%} of the time: raise "
            "checkpoint.every_minutes."
        )
    if shares.get("copy", 0) > LONG_COPY:
        yield (
            f"Copies to the GPU take {shares['copy']:.0%} of a step: "
            "speed_switches.prefetch=true makes them while the batch before is trained on."
        )
    if run.communication:
        took, hidden = run.communication
        if took - hidden > SHOWN_ALL_REDUCE * step:
            yield (
                f"Communication-bound: {(took - hidden) / step:.0%} of a step is all-reduce that "
                f"the backward pass does not hide (it hides {hidden / took:.0%}). Fewer nodes, a "
                "faster interface (NCCL_SOCKET_IFNAME) or more accumulation help."
            )


def _own_and_step(run: Story) -> tuple[float | None, float | None]:
    own = [pace["own_s"] for pace in run.paces.values() if pace.get("own_s")]
    steps = [pace["batch_s"] for pace in run.paces.values() if pace.get("batch_s")]
    return (max(own) if own else None), (statistics.median(steps) if steps else None)


def _gpus(run: Story) -> Iterator[str]:
    idle = [f"{index} of {host}" for host, index, busy in _each_gpu(run) if busy < IDLE]
    working = [busy for _, _, busy in _each_gpu(run) if busy > BUSY]
    if idle and working:
        yield (
            f"GPU {', '.join(idle[:4])} idles while others work: it has no rank, or a rank that "
            "hangs."
        )
    shares = [
        gpu["memory"] / gpu["memory_total"]
        for samples in run.vitals.values()
        for sample in samples[-RECENT:]
        for gpu in sample.get("gpus", ())
        if gpu.get("memory_total")
    ]
    accumulation = run.config.get("trainer.params.accumulate_grad_batches", "1")
    if shares and max(shares) < LITTLE_MEMORY and accumulation not in {"1", "null", ""}:
        batch = run.config.get("dataloader.params.batch_size", "?")
        yield (
            f"GPU memory is used to {max(shares):.0%} while {accumulation} batches are "
            "accumulated: "
            f"raise dataloader.params.batch_size (now {batch}); the global batch stays."
        )


def _busy(run: Story) -> float | None:
    values = [busy for _, _, busy in _each_gpu(run)]
    return statistics.median(values) if values else None


def _each_gpu(run: Story) -> Iterator[tuple[str, int, float]]:
    for host, samples in run.vitals.items():
        found: dict[int, list[float]] = {}
        for sample in samples[-RECENT:]:
            for gpu in sample.get("gpus", ()):
                found.setdefault(gpu.get("index", 0), []).append(gpu.get("busy", 0))
        for index, values in found.items():
            yield host, index, statistics.fmean(values)


def _nodes(run: Story) -> int:
    return len(run.vitals)


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def last(samples: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The newest sample, or nothing."""
    return samples[-1] if samples else {}
