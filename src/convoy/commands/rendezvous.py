"""`convoy rendezvous`: what slurm/launch.sh asks once, on a job's first node, for all of its nodes.

Checks the configuration, makes the run directory and finds where torchrun's agents meet. Prints one
line for the launch, marked so that a site's own greetings on the same output do no harm; everything
for a person goes to standard error.
"""

import argparse
import os
import sys

from convoy.errors import ExitCode
from convoy.launch import network
from convoy.launch.node import begin, check
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement, Launch, least_nodes, rendezvous_port

MARK = "convoy-agreement "
LOST_MARK = "convoy-lost-nodes "  # the file in which nodes name one that went


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--changed",
        default="",
        metavar="FILES",
        help="files of the launch that are newer than the job's submission, one per line",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments"
    )


def run(args: argparse.Namespace) -> int:
    launch = Launch.of_job(os.environ)
    least_nodes(os.environ)  # a mistake in it is for now, not for when a node is lost
    run_dir, data = check(args.overrides, launch)
    port = network.free_port(rendezvous_port(os.environ), seed=launch.start)
    address = network.address_towards(launch.peer) if launch.peer else "127.0.0.1"
    directory = RunDirectory(run_dir)
    begin(directory, launch, args.overrides, args.changed.splitlines())
    peers = network.free_port(None, seed=launch.start, taken=(port,))
    agreement = Agreement(
        launch.start,
        network.endpoint(address, port),
        str(run_dir),
        network.endpoint(address, peers),
        str(data),
    )
    print(f"launch: run directory {run_dir}, rendezvous at {agreement.endpoint}", file=sys.stderr)
    # On a line of its own, even where something was printed before without an end of line.
    print(f"\n{MARK}{agreement.to_text()}\n{LOST_MARK}{directory.lost_nodes(launch.start)}")
    return ExitCode.FINISHED
