"""`convoy train`: this node's part of a launch, a rank per GPU, wherever it is typed."""

import argparse
import os

from convoy.errors import ConvoyError
from convoy.topology import Agreement, Launch, agreed_launch, is_first_task

DESCRIPTION = """\
Train with a rank per GPU of this node: alone, as this node's part of an srun step, or as one of
several nodes by hand. Arguments are those of NAVSIM's run_training (Hydra overrides), for example:
agent=transfuser_agent cache_path=/data/cache global_batch=64"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    hand = parser.add_argument_group("several nodes by hand, the same command on each")
    hand.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    hand.add_argument("--node-rank", type=int, metavar="R", help="this one's number, from 0")
    hand.add_argument("--rendezvous", metavar="HOST:PORT", help="a port of node 0 to meet at")
    hand.add_argument("--start", metavar="NAME", help="a name for this start, new each time")
    parser.add_argument(
        "--agreement", help="the line that `convoy rendezvous` printed for this start"
    )


def run(args: argparse.Namespace) -> int:
    from convoy.launch.node import train_on_node

    try:
        launch, agreement = _part(args)
    except ConvoyError as error:  # every task of a step finds the same: one of them says so
        if is_first_task(os.environ):
            raise
        return error.exit_code
    return train_on_node(launch, args.overrides, agreement)


def _part(args: argparse.Namespace) -> tuple[Launch, Agreement | None]:
    """This node's part, and what a job's first node has agreed on for all."""
    if args.agreement is not None:
        agreement = Agreement.from_text(args.agreement)
        return agreed_launch(os.environ, agreement), agreement
    by_hand = (args.nodes, args.node_rank, args.rendezvous, args.start)
    if by_hand == (None,) * 4:
        return Launch.from_environment(os.environ), None
    if None in by_hand:
        raise ConvoyError(
            "Several nodes by hand take all of --nodes, --node-rank, --rendezvous and --start, the "
            "same on each node but for --node-rank."
        )
    if not 0 <= args.node_rank < args.nodes or ":" not in args.rendezvous:
        raise ConvoyError(
            f"--node-rank={args.node_rank} must be from 0 to {args.nodes - 1} (--nodes), and "
            f"--rendezvous={args.rendezvous} must be HOST:PORT."
        )
    return Launch.by_hand(os.environ, *by_hand), None
