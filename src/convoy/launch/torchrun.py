"""torchrun's arguments, from how this node takes part in a launch."""

from pathlib import Path

from convoy.launch import network
from convoy.topology import Launch

LOOPBACK = "127.0.0.1"


def rendezvous_endpoint(launch: Launch) -> str:
    """host:port where torchrun's agents meet.

    Under srun alone the nodes have no way to agree on a port: it follows from the step's id.
    """
    if launch.endpoint is None:
        return f"{LOOPBACK}:0"
    if launch.kind == "srun":
        return network.endpoint(launch.endpoint, network.port_of(launch.start))
    return launch.endpoint


def torchrun_arguments(launch: Launch, address: str, run_dir: Path) -> list[str]:
    """The whole command line of torchrun but the overrides; `address` is this node's own."""
    return [
        f"--nnodes={launch.nodes}",
        f"--nproc-per-node={launch.processes}",
        "--rdzv-backend=convoy",  # launch/rendezvous.py
        f"--rdzv-endpoint={rendezvous_endpoint(launch)}",
        f"--rdzv-id={launch.start}",
        f"--rdzv-conf=number={launch.number}",
        f"--local-addr={address}",
        "--signals-to-handle=SIGHUP,SIGQUIT",  # the others are launch/signals.py's
        "-m",
        "convoy.launch.rank",
        f"--run-dir={run_dir}",
    ]
