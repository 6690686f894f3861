"""`convoy check`: what a training run would be, checked before anything is started.

Imports no torch, but for --fit and --flops.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from convoy import config
from convoy.commands.console import console
from convoy.config import Settings, multirun
from convoy.errors import ConvoyError, ExitCode
from convoy.host import workload
from convoy.navsim import tree
from convoy.run import cost
from convoy.run.ownership import experiments, require_same_configuration
from convoy.topology import Topology

if TYPE_CHECKING:
    from convoy.training.fit import Fit

GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=int, default=1, help="nodes of the launch (default: %(default)s)"
    )
    parser.add_argument(
        "--processes-per-node", type=int, default=1, help="ranks per node (default: %(default)s)"
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="find the largest batch per rank that fits on the GPU here, with real steps of the "
        "agent (about a minute); nothing is changed",
    )
    parser.add_argument(
        "--flops",
        action="store_true",
        help="count the floating-point operations of a sample, on this machine's CPU, and keep "
        "them for convoy plan",
    )
    parser.add_argument(
        "--json", action="store_true", help="with --fit and --flops: print it as JSON"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--multirun",
        "-m",
        action="store_true",
        help="the arguments are those of a sweep: check each point and print them as JSON",
    )
    parser.add_argument("--sweep", type=Path, help="the sweep's folder, with its runs so far")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments"
    )


def run(args: argparse.Namespace) -> int:
    """Print what the launch would be, or raise ConvoyError."""
    topology = Topology.planned(args.nodes, args.processes_per_node)
    if args.multirun:
        points = multirun.points(args.overrides)
        _check_points(points, args.overrides, topology, args.sweep)
        print(json.dumps([{"name": point.name, "chosen": point.chosen} for point in points]))
        return ExitCode.FINISHED
    settings = config.load(args.overrides, topology, tree.config_directory())
    if settings.config.run_dir:
        require_same_configuration(Path(settings.config.run_dir), settings.config)
    if args.fit:
        return _fit(settings, args.json)
    if args.flops:
        return _flops(settings, args.overrides, args.json)
    if not args.quiet:
        table = Table("setting", "value", title="convoy check")
        batches = settings.batches
        for name, value in {
            "agent": settings.config.agent._target_,
            "cache_path": settings.config.cache_path,
            "world size": f"{topology.world_size} = {topology.num_nodes} nodes "
            f"x {topology.local_world_size}",
            "global batch": f"{batches.global_batch} = {batches.world_size} ranks "
            f"x {batches.rank_batch} samples "
            f"x {batches.accumulation} accumulation",
        }.items():
            table.add_row(name, str(value))
        console().print(table)
        for note in settings.notes:
            console().print(note, markup=False)
    return ExitCode.FINISHED


def _fit(settings: Settings, as_json: bool) -> int:
    from convoy.training import fit

    fit.require_gpu(settings.config)
    now = int(settings.config.dataloader.params.batch_size)
    out = None if as_json else console()

    def tell(trial: fit.Trial) -> None:
        if out is not None:
            if trial.peak is None:
                found = "no memory left"
            else:
                found = f"{trial.peak / GIB:5.1f} GiB  {trial.samples_per_s:.0f} samples/s"
            out.print(f"batch {trial.batch:5d}  {found}", highlight=False)

    with fit.real_steps(settings) as steps:
        found = fit.search(steps, fit.CardMemory(steps.device), first=now, tell=tell)
    if out is None:
        print(json.dumps(asdict(found) | {"batch_size_now": now}, indent=1))
        return ExitCode.FINISHED
    for line in _advice(found, fit.MARGIN, now):
        out.print(line, highlight=False, soft_wrap=True)
    return ExitCode.FINISHED


def _flops(settings: Settings, words: Sequence[str], as_json: bool) -> int:
    import torch

    from convoy.agents.calls import AgentCalls
    from convoy.training import fit, flops

    config = settings.config
    agent, sample, tokens = fit.agent_with_samples(config, settings.batches, torch.device("cpu"))
    counted = flops.count(agent, AgentCalls(agent), sample, tokens)
    if counted is None:
        raise ConvoyError(
            f"The operations of {type(agent).__name__} could not be counted: torch's counter "
            "cannot follow it, or it has no matrix product and no convolution. convoy plan learns "
            "from a first short run instead."
        )
    name = workload.settings(words)["agent"]
    try:
        path = cost.keep(experiments(), name, counted)
    except OSError as error:
        raise ConvoyError(
            f"{experiments()} cannot be written: {error.strerror}. Set NAVSIM_EXP_ROOT to another "
            "folder, the one that convoy plan looks at."
        ) from error
    if as_json:
        print(json.dumps(asdict(counted), indent=1))
        return ExitCode.FINISHED
    console().print(
        f"{name}: {counted.gflop:.3g} GFLOP a sample, forward and backward "
        f"({counted.gflop_forward:.3g} forward), {counted.parameters:.3g} M parameters.\n"
        f"convoy plan reads it from {path}.",
        highlight=False,
        soft_wrap=True,
    )
    return ExitCode.FINISHED


def _advice(found: "Fit", margin: float, now: int) -> Iterator[str]:
    total = found.total / GIB
    if found.batch == 0:
        yield f"Not even one sample fits in {total:.0f} GiB with {margin:.0%} left free."
        return
    least = "" if found.complete else " at least (the minute was up)"
    yield (
        f"Largest batch per rank that fits{least}: {found.batch}, {(found.peak or 0) / GIB:.1f} of "
        f"{total:.0f} GiB with {margin:.0%} left free. Measured without compiler and CUDA graph."
    )
    if found.batch < now:
        yield (
            f"dataloader.params.batch_size={now} does not fit: set "
            f"dataloader.params.batch_size={found.batch}. With global_batch=… the "
            "optimizer's steps stay the same, by accumulation."
        )
    elif found.batch > now:
        yield (
            f"dataloader.params.batch_size={now} stays as it is. Raising it to {found.batch} "
            "changes the training unless global_batch is set: it is then how many samples a rank "
            "holds at once, and fewer batches are accumulated."
        )


def _check_points(
    points: Sequence[multirun.Point], words: Sequence[str], topology: Topology, sweep: Path | None
) -> None:
    """Raise ConvoyError with a sentence for each bad point, or one where all have the same
    fault."""
    groups = tree.config_directory()
    wrong: dict[str, list[str]] = {}
    for point in points:
        try:
            settings = config.load(point.words(words), topology, groups)
            if sweep is not None:
                require_same_configuration(sweep / point.name, settings.config)
        except ConvoyError as error:
            wrong.setdefault(str(error), []).append(point.name)
    if wrong:
        raise ConvoyError("\n".join(_sentences(wrong, len(points))))


def _sentences(wrong: dict[str, list[str]], points: int) -> Iterator[str]:
    for message, names in wrong.items():
        if len(names) == points:
            yield message
        else:
            yield from (f"{name}: {message}" for name in names)
