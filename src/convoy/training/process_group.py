"""The process group, opened before Lightning so that all ranks agree on errors, names and the
cache's index first."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from convoy.errors import ConvoyError, ExitCode
from convoy.topology import Topology

T = TypeVar("T")


class Pending:
    """A comparison of the ranks that runs in the background; `result` waits for it."""

    def __init__(self, values: torch.Tensor, work: dist.Work | None) -> None:
        self._values, self._work = values, work

    def result(self) -> list[Any]:
        if self._work is not None:
            self._work.wait()
        found: list[Any] = self._values.tolist()
        return found


class HostGroup:
    """Small agreements among the ranks, over gloo on the host: they never wait for a GPU's
    queue."""

    def __init__(self, topology: Topology, group: dist.ProcessGroup | None) -> None:
        self.topology = topology
        self._group = group

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and give its result (it is pickled) to every rank; a ConvoyError is
        raised on all."""
        outcome: list[Any] = [None]
        if self.topology.is_rank_zero:
            try:
                outcome = [work()]
            except ConvoyError as error:
                outcome = [error]
        if self._group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if isinstance(outcome[0], ConvoyError):
            raise outcome[0]
        return outcome[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` (it is pickled), in order of rank, on every rank."""
        gathered: list[Any] = [value] * self.topology.world_size
        if self._group is not None:
            dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def rank_zero_says(self, flag: bool) -> bool:
        """Rank 0's `flag`, on every rank."""
        if self._group is None:
            return flag
        message = torch.tensor([flag], dtype=torch.uint8)
        dist.broadcast(message, src=0, group=self._group)
        return bool(message.item())

    def begin_max(self, values: torch.Tensor) -> Pending:
        """Begin to take the maximum of a host tensor over the ranks, element by element."""
        if self._group is None:
            return Pending(values, None)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return Pending(values, work)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a host tensor over the ranks."""
        if self._group is not None:
            dist.all_reduce(values, group=self._group)
        return values


@contextmanager
def process_group(topology: Topology, accelerator: str, timeout: timedelta) -> Iterator[HostGroup]:
    """Join the other ranks: NCCL for the gradients, gloo for `HostGroup`; nothing to join when
    alone.

    Lightning finds the group open and uses it. After a failure nobody leaves it in order: a
    collective of NCCL that the others never join would hold this rank before it could say why.
    """
    if topology.world_size == 1:
        yield HostGroup(topology, None)
        return
    if accelerator == "cpu":
        dist.init_process_group("gloo", timeout=timeout)
        host_group = dist.group.WORLD
    else:
        device = torch.device("cuda", topology.local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
        host_group = dist.new_group(backend="gloo", timeout=timeout)
    try:
        yield HostGroup(topology, host_group)
    except ConvoyError as error:
        if error.exit_code == ExitCode.RESUMABLE:  # all ranks saved and stopped
            leave_process_group()
        raise
    leave_process_group()


def leave_process_group() -> None:
    """Destroy the process group, after its threads have let go of Python objects.

    A gloo thread needs the interpreter lock to drop what a finished collective held; destroying the
    group holds that lock and waits for the thread. With torch 2.13 a process that did so right
    after its last collective hung forever.
    """
    time.sleep(0.1)
    dist.destroy_process_group()
