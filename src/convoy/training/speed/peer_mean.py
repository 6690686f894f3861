"""The mean of a bucket over the ranks of one node, by copies between their GPUs.

NCCL adds on the GPU's processors, and takes some of them from the backward pass beside it. Over
NVLink the copy engines carry as much, and a processor only averages what arrived: each rank its
share of the bucket. The technique is torch's own (`_low_contention_reduce_scatter` and
`_low_contention_all_gather`), here in buffers that a CUDA graph can hold.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric

from convoy.topology import Topology
from convoy.training.process_group import HostGroup

FAST = 100.0  # GB/s of a link in one direction: NVLink has more, PCI Express and Ethernet less
LANES = 8  # elements: a share begins at whole 16 bytes


class PeerMean:
    """`flat` becomes the mean over the ranks of what `begin` puts into it.

    All ranks make theirs together, with as many elements. After a step's last bucket, `leave`.
    """

    def __init__(
        self, numel: int, dtype: torch.dtype, device: torch.device, stream: torch.cuda.Stream
    ) -> None:
        """`stream` is the same for all buckets. Raises RuntimeError where the GPUs cannot read one
        another's memory."""
        group = dist.group.WORLD
        assert group is not None
        rank, world_size = group.rank(), group.size()
        share = math.ceil(numel / world_size / LANES) * LANES
        # Not symmetric.empty: its tensors may share one allocation, where get_buffer begins.
        allocate = symmetric._SymmetricMemory.empty_strided_p2p
        whole = allocate((world_size * share,), (1,), dtype, device)
        self._handle = symmetric.rendezvous(whole, group)
        shares = whole.zero_().split(share)
        others = [(rank + distance) % world_size for distance in range(1, world_size)]
        theirs = {
            other: self._handle.get_buffer(other, whole.shape, dtype).split(share)
            for other in others
        }
        self.flat = whole[:numel]
        self._mine = shares[rank]
        self._arriving = [(torch.empty_like(self._mine), theirs[other][rank]) for other in others]
        self._means = [(shares[other], theirs[other][other]) for other in others]
        self._stream = stream
        self._done = torch.cuda.Event()

    def begin(self, views: list[Tensor], values: list[Tensor]) -> None:
        """`views` of `flat` take `values`; the rest runs beside what is queued after this."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(views, values)
            self._handle.barrier()  # all ranks' values are there
            for here, there in self._arriving:
                here.copy_(there)
            for count, (here, _) in enumerate(self._arriving, start=2):
                self._mine.lerp_(here, 1 / count)  # the mean of the first `count`
            self._handle.barrier()  # all means are there
            for here, there in self._means:
                here.copy_(there)
            self._done.record()

    def wait(self) -> None:
        """What is queued after this finds the mean."""
        torch.cuda.current_stream().wait_event(self._done)

    def leave(self) -> None:
        """What is queued after this may write where other ranks were reading."""
        with torch.cuda.stream(self._stream):
            self._handle.barrier()
        torch.cuda.current_stream().wait_stream(self._stream)


def reason_against_copies(
    topology: Topology, device: torch.device, gb_per_s: float | None, ranks: HostGroup
) -> str | None:
    """Why these ranks do not average so, in a few words; all of them get the same.

    `gb_per_s` is what the slowest link between them carries in one direction, None: unknown.
    """
    if topology.num_nodes > 1:
        return "the ranks are on several nodes"
    if gb_per_s is None or gb_per_s < FAST:
        carried = "an unknown amount" if gb_per_s is None else f"{gb_per_s:.3g} GB/s"
        return f"the link between the GPUs carries {carried}, and it takes {FAST:g} GB/s"
    return next(filter(None, ranks.gather(_fault(topology, device))), None)


def _fault(topology: Topology, device: torch.device) -> str | None:
    """Of one mean that is tried."""
    try:
        tried = PeerMean(1, torch.float32, device, torch.cuda.Stream(device))
        value = torch.full((1,), float(topology.rank), device=device)
        tried.begin([tried.flat], [value])
        tried.wait()
        tried.leave()
        found, right = tried.flat.item(), (topology.world_size - 1) / 2
    except RuntimeError as error:
        return f"a GPU cannot read another's memory ({str(error).splitlines()[0]})"
    return None if math.isclose(found, right) else f"a mean was {found:g}, and {right:g} is right"
