"""`convoy check`: what a training run would be, checked before anything is started.

Imports no torch.
"""

import argparse
from pathlib import Path

from rich.table import Table

from convoy import config
from convoy.commands.console import console
from convoy.errors import ExitCode
from convoy.navsim import tree
from convoy.run.ownership import require_same_configuration
from convoy.topology import Topology


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=int, default=1, help="nodes of the launch (default: %(default)s)"
    )
    parser.add_argument(
        "--processes-per-node", type=int, default=1, help="ranks per node (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments"
    )


def run(args: argparse.Namespace) -> int:
    """Print what the launch would be, or raise ConvoyError."""
    topology = Topology.planned(args.nodes, args.processes_per_node)
    settings = config.load(args.overrides, topology, tree.config_directory())
    if settings.config.run_dir:
        require_same_configuration(Path(settings.config.run_dir), settings.config)
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
