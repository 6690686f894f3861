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
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={rendezvous_endpoint(launch)}",
        f"--rdzv-id={launch.start}",
        f"--rdzv-conf=is_host={int(launch.is_host)}",
        f"--local-addr={address}",
        "-m",
        "convoy.launch.rank",
        f"--run-dir={run_dir}",
    ]
