"""`make demo`: the whole way on one machine, as two nodes of two ranks each, and a table of what
was learned."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from convoy import config
from convoy.commands import synth
from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.navsim import tree
from convoy.topology import Topology

NODES, PROCESSES_PER_NODE = 2, 2
BUILT_IN = "bev_fusion_agent"


@dataclass(frozen=True)
class Size:
    """How much of a demo two CPU cores can do in three minutes."""

    samples: int
    logs: int
    epochs: int
    global_batch: int


SIZES = {BUILT_IN: Size(800, 32, 8, 16)}
# 4 validation samples a rank: TransfuserCallback draws as many.
SIZE_OF_NAVSIM_AGENTS = Size(64, 4, 1, 16)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--agent", default=BUILT_IN, help="agent to train (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/demo"),
        help="folder to write (default: %(default)s)",
    )
    args = parser.parse_args()
    try:
        _demo(args.agent, args.out.absolute())
    except ConvoyError as error:
        print(f"convoy: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.FINISHED


def _demo(agent: str, out: Path) -> None:
    if agent not in config.agents_found(tree.config_directory()):
        config.compose([f"agent={agent}"], tree.config_directory())
    size = SIZES.get(agent, SIZE_OF_NAVSIM_AGENTS)
    cache, run_dir = out / f"cache-{size.samples}", out / f"run-{agent}"
    shutil.rmtree(run_dir, ignore_errors=True)
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    synth.run(
        parser.parse_args([str(cache), "--samples", str(size.samples), "--logs", str(size.logs)])
    )

    overrides = [
        f"agent={agent}",
        f"cache_path={cache}",
        f"run_dir={run_dir}",
        f"global_batch={size.global_batch}",
        f"trainer.params.max_epochs={size.epochs}",
        "trainer.params.accelerator=cpu",
        "trainer.params.precision=32-true",
        "dataloader.params.num_workers=0",
        "data.val_fraction=0.2",
        "validate_first=true",
        *_offline_weights(agent, out),
    ]
    _train(overrides)

    results = json.loads((run_dir / "results.json").read_text())
    plot = _plot(overrides, run_dir, out / f"trajectories-{agent}.png")
    summary = {
        "ade_constant_velocity": results["ade_constant_velocity"],
        "ade_before": results["ade_before"],
        "ade_after": results["ade"],
        "fde_after": results["fde"],
        "samples_per_s": results["samples_per_s"],
        "world_size": results["world_size"],
        "run_dir": str(run_dir),
        "plot": str(plot),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _print(agent, results, summary, out)


def _offline_weights(agent: str, out: Path) -> list[str]:
    """TransFuser downloads its backbone's weights; the demo starts it from random ones instead, and
    says so."""
    if agent != "transfuser_agent":
        return []
    from convoy.navsim.weights import write_random_backbone

    folder = write_random_backbone("resnet34", out / "resnet34-random")
    print(f"the image backbone starts from random weights ({folder}): a demo needs no download")
    return [f"+agent.config.image_architecture='local-dir:{folder}'"]


def _train(overrides: list[str]) -> None:
    """Start `convoy train` once per node, as by hand on two machines, and wait; the first failure
    ends both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    print(
        f"training as {NODES} nodes x {PROCESSES_PER_NODE} processes, rendezvous at {endpoint}",
        flush=True,
    )
    environment = os.environ | {"CONVOY_PROCESSES_PER_NODE": str(PROCESSES_PER_NODE)}
    command = [sys.executable, "-m", "convoy.commands", "train", f"--nodes={NODES}"]
    command += [f"--rendezvous={endpoint}", "--start=demo"]
    nodes: list[subprocess.Popen[Any]] = []
    try:
        for node in range(NODES):
            ranked = [*command, f"--node-rank={node}", "--", *overrides]
            nodes.append(subprocess.Popen(ranked, env=environment, start_new_session=True))
        for started in nodes:
            if started.wait():
                raise ConvoyError(
                    f"the training failed with exit code {started.returncode}; the reason is above."
                )
    finally:
        for started in nodes:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGTERM)
                started.wait()


def _plot(overrides: list[str], run_dir: Path, path: Path) -> Path:
    """Predicted against true trajectories of some held-out samples, with the trained agent."""
    import torch

    from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, logs_in, scan
    from convoy.data.split import choose_logs
    from convoy.navsim.agents import build_agent
    from convoy.run.layout import RunDirectory
    from convoy.training.plot import plot_trajectories

    settings = config.load(overrides, Topology(), tree.config_directory())
    agent = build_agent(settings.config.agent)
    checkpoint = torch.load(
        RunDirectory(run_dir).last_checkpoint, map_location="cpu", weights_only=True
    )
    agent.load_state_dict(
        {key.removeprefix("agent."): value for key, value in checkpoint["state_dict"].items()}
    )
    builders = Builders.of(agent)
    cache = Path(settings.config.cache_path)
    samples = scan(cache, choose_logs(settings.config, logs_in(cache)).val, builders).samples
    data = CacheDataset(CacheSplit(cache, samples), builders)
    picked = range(0, len(data), max(1, len(data) // 8))[:8]
    batch = collate([data[index] for index in picked])
    if isinstance(batch, ConvoyError):
        raise batch
    features, targets = batch
    agent.eval()
    with torch.no_grad():
        predictions = agent.forward(features)
    plot_trajectories(path, features, targets, predictions)
    return path


def _print(agent: str, results: dict[str, Any], summary: dict[str, Any], out: Path) -> None:
    table = Table("", "ADE", "FDE", title=f"{agent}: error on held-out logs")
    for name, suffix in (
        ("constant velocity", "_constant_velocity"),
        ("before", "_before"),
        ("after", ""),
    ):
        table.add_row(name, f"{results[f'ade{suffix}']:.3f} m", f"{results[f'fde{suffix}']:.3f} m")
    screen = console()
    screen.print(table)
    screen.print(
        f"{summary['samples_per_s']:.1f} samples/s on {summary['world_size']} ranks\n"
        f"run directory  {summary['run_dir']}\n"
        f"log            {summary['run_dir']}/logs/rank-000.log\n"
        f"plot           {summary['plot']}\n"
        f"summary        {out / 'summary.json'}",
        soft_wrap=True,
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
