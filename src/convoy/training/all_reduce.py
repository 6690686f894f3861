"""An all-reduce over all ranks before the training: is the sum right, and how fast is it?"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from convoy.errors import ConvoyError, ExitCode
from convoy.health.link import Link, between_gpus, between_nodes
from convoy.topology import Topology
from convoy.training.process_group import HostGroup

logger = logging.getLogger("convoy")

# Bytes that are summed: large enough for a bandwidth, small enough for a tenth of a second.
GPU_BYTES, CPU_BYTES = 64 << 20, 4 << 20
ROUNDS = 3
LEAST_SHARE = 0.15  # of the link's bandwidth: two H100 reached 0.35 to 0.43 of NVLink's
PATIENCE = 120.0  # seconds; NCCL connects all ranks in the first round


@dataclass(frozen=True)
class AllReduce:
    """`gb_per_s` is nccl-tests' bus bandwidth in 10^9 bytes/s, 2 (n - 1) / n x bytes / time: what
    each rank's link carries, comparable over numbers of ranks."""

    ranks: int
    nodes: int
    backend: str
    bytes: int
    seconds: float
    gb_per_s: float


class WrongSum(ConvoyError):
    """A rank whose node does not add up."""

    exit_code = ExitCode.PREFLIGHT


class OtherRankWrong(ConvoyError):
    """This rank is well, and another one is not."""

    exit_code = ExitCode.RESUMABLE


def check_all_reduce(
    topology: Topology,
    host_group: HostGroup,
    device: torch.device,
    failed: Callable[[str], None] = lambda message: None,
) -> AllReduce | None:
    """Sum what all ranks know; None where there is one.

    Raises WrongSum on a rank where the sum is wrong, OtherRankWrong on the others, and ConvoyError
    where it is wrong everywhere, so that nobody can be named. Ends the process where it does not
    end, after `failed` was called with the reason.
    """
    if topology.world_size == 1:
        return None
    size = (CPU_BYTES if device.type == "cpu" else GPU_BYTES) // 4
    # Whole numbers that float32 adds exactly; each place has its own, and each rank.
    own = torch.arange(size, device=device, dtype=torch.float32) % 251 * (topology.rank + 1)
    with _limited(topology, failed):
        seconds = []
        for _ in range(1 + ROUNDS):
            summed = own.clone()
            _wait(device)
            began = time.perf_counter()
            dist.all_reduce(summed)
            _wait(device)
            seconds.append(time.perf_counter() - began)
    ranks = topology.world_size
    right = torch.equal(summed, own / (topology.rank + 1) * (ranks * (ranks + 1) / 2))
    _require(host_group.gather((topology.host, right)), topology)
    usual = sorted(host_group.gather(min(seconds[1:])))[-1]
    bus = 2 * (ranks - 1) / ranks * size * 4 / usual / 1e9
    backend = str(dist.get_backend())
    return AllReduce(
        ranks, topology.num_nodes, backend, size * 4, round(usual, 6), float(f"{bus:.3g}")
    )


def link_of(
    topology: Topology, device: torch.device, environment: Mapping[str, str]
) -> Link | None:
    """What the slowest link between the ranks carries, as far as this rank can know."""
    if topology.num_nodes > 1:
        names = environment.get("NCCL_SOCKET_IFNAME") or environment.get("GLOO_SOCKET_IFNAME", "")
        return between_nodes(names.lstrip("=").partition(",")[0] or None)
    return None if device.type == "cpu" else between_gpus(device.index or 0)


def say_all_reduce(measured: AllReduce, link: Link | None) -> None:
    """In the log: the bandwidth beside the link's, and a warning where it is far below."""
    said = f"all-reduce over {measured.ranks} ranks ({measured.backend}): {measured.gb_per_s:.3g}"
    if link is None:
        logger.info("%s GB/s", said)
        return
    share = measured.gb_per_s / link.gb_per_s
    logger.info("%s GB/s, %.0f %% of the link's (%s)", said, 100 * share, link)
    if share < LEAST_SHARE and measured.backend == "nccl":  # gloo's is the processors' affair
        logger.warning(
            "The all-reduce reaches %.0f %% of what %s carries: NCCL_DEBUG=INFO shows the path "
            "that NCCL took, and `convoy doctor` what it may use.",
            100 * share,
            link.name,
        )


def _require(sums: list[tuple[str, bool]], topology: Topology) -> None:
    wrong = [f"rank {rank} on {host}" for rank, (host, right) in enumerate(sums) if not right]
    if not wrong:
        return
    if len(wrong) == len(sums):
        raise ConvoyError(
            f"An all-reduce gave a wrong sum on all {len(sums)} ranks: a GPU or a network adapter "
            "of theirs is broken."
        )
    message = f"An all-reduce over {len(sums)} ranks gave a wrong sum on {', '.join(wrong)}."
    raise (OtherRankWrong if sums[topology.rank][1] else WrongSum)(message)


@contextmanager
def _limited(topology: Topology, failed: Callable[[str], None]) -> Iterator[None]:
    """End this process where the ranks do not answer each other."""

    def end() -> None:
        failed(
            f"An all-reduce over {topology.world_size} ranks did not end within {PATIENCE:.0f} s: "
            "ranks cannot reach each other, or a GPU hangs."
        )
        os._exit(ExitCode.RESUMABLE)

    timer = threading.Timer(PATIENCE, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
