"""`python -m convoy.train OVERRIDE…`: one rank of a training run; torchrun starts one process per rank."""

import os
import sys
from collections.abc import Sequence

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.topology import Topology


def main(overrides: Sequence[str] | None = None) -> int:
    """Train with Hydra `overrides` (default: the command line's). Returns the process's exit code."""
    topology = Topology()
    try:
        topology = Topology.from_environment(os.environ)
        settings = config.load(sys.argv[1:] if overrides is None else overrides, topology)
        from convoy.training.run import train  # after the checks that need no torch: a mistake is told in half a second

        train(settings, topology)
    except ConvoyError as error:
        where = f" (rank {topology.rank} on {topology.host})" if topology.world_size > 1 else ""
        print(f"convoy{where}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return ExitCode.FINISHED


if __name__ == "__main__":
    sys.exit(main())
