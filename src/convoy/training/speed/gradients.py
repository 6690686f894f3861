"""The mean of the gradients over the ranks, bucket by bucket while the backward pass still runs.

DistributedDataParallel does the same. It copies each gradient into its bucket and back for itself,
a thousand launches in a step of TransFuser's, and its hooks wait on the host now and then, which a
CUDA graph cannot hold. These buckets are reduced by work on the device alone: by NCCL, for which a
large gradient stays where it lies and small ones are copied side by side, or by copies between the
GPUs of a node (peer_mean.py). The parameters that take part are those that got a gradient in the
first step; the same on every rank. Buckets are cut in the order in which rank 0's gradients arrived
then, and leave in that order on every rank.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from convoy.training.speed.exchange_times import ExchangeTimes
from convoy.training.speed.peer_mean import FAST, PeerMean
from convoy.training.speed.regions import REGION

ALIGNED = 16  # bytes: optimizers read gradients that begin so four at a time
LARGE = 256 << 10  # bytes: a copy of it takes longer than one more piece of the reduction

logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class Buckets:
    """Their sizes in bytes, in the order in which gradients arrive."""

    first: int
    usual: int
    last: int  # has nothing beside it; 0: no bucket of its own


# Beside its time on the wire a bucket more costs a step about 60 us (two H100, NVLink), so over a
# fast link they are few. Over a slow one the bytes are what takes time, and leave early.
FEW = Buckets(100 << 20, 100 << 20, 16 << 20)
MANY = Buckets(1 << 20, 16 << 20, 0)
# By copies, which only memory slows down. The last holds a region (regions.py), whose gradients
# arrive together: with less, the bucket before it would wait for the backward pass's end too.
COPIED = Buckets(256 << 20, 256 << 20, REGION)


def buckets_over(gb_per_s: float | None) -> Buckets:
    """For NCCL and a link that carries so much in one direction; None: unknown."""
    return FEW if gb_per_s is not None and gb_per_s >= FAST else MANY


class GradientMean:
    """Call `wait` after each backward pass: then `.grad` is the mean over the ranks.

    While it is `paused`, backward passes add to this rank's own gradients. Raises RuntimeError
    where a step gives gradients to other parameters than the first one did.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        world_size: int,
        bf16: bool = False,
        sizes: Buckets = MANY,
        copies: bool = False,
        times: ExchangeTimes | None = None,
    ) -> None:
        """`bf16`: float32 gradients travel, and are added, as bfloat16: half the bytes.

        `copies`: between the GPUs of one node, in place of NCCL. `times` hears when an exchange
        begins and ends.
        """
        self.paused = False
        self._copies_on = torch.cuda.Stream() if copies else None
        self._parameters = [entry for entry in parameters if entry.requires_grad]
        self._world_size, self._bf16, self._sizes = world_size, bf16, sizes
        self._times = times
        self._buckets: list[_Bucket] | None = None
        self._sent = 0  # buckets of this step
        self._arrived: list[int] = []
        self._watched = [
            entry.register_post_accumulate_grad_hook(lambda _, index=index: self._note(index))
            for index, entry in enumerate(self._parameters)
        ]

    def _note(self, index: int) -> None:
        if not self.paused:
            self._arrived.append(index)

    def wait(self) -> None:
        """Finish the reductions; the first time, find out which parameters take part."""
        if self._buckets is None:
            self._buckets = self._make()
            self._send()
        elif self._times is not None:
            self._times.backward_ended()
        if self._sent < len(self._buckets):
            missing = self._buckets[self._sent].missing
            raise RuntimeError(f"{missing} parameters got no gradient in this step")
        for bucket in self._buckets:
            bucket.finish()
        for last in self._buckets[-1:]:
            last.leave()
        self._sent = 0
        if self._times is not None:
            self._times.ended()

    def _make(self) -> list["_Bucket"]:
        for watch in self._watched:
            watch.remove()
        fires = Counter(self._arrived)  # a checkpointed module's, say, more than once
        used = [self._parameters[index] for index in self._order()]
        parts = _cut(used, self._sizes)
        buckets = [_Bucket(part, self._world_size, self._bf16, self._copies_on) for part in parts]
        size = sum(map(_bytes, used)) / 2**20
        logger.info("the ranks average %.0f MiB of gradients in %d buckets", size, len(parts))
        place = {id(entry): bucket for bucket in buckets for entry in bucket.parameters}
        for index, entry in enumerate(self._parameters):
            bucket = place.get(id(entry))
            if bucket is not None:
                bucket.expected += fires[index]
            entry.register_post_accumulate_grad_hook(self._arrival(bucket))
        return buckets

    def _arrival(self, bucket: "_Bucket | None") -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if self.paused:
                return
            if bucket is None or bucket.missing == 0:
                raise RuntimeError(
                    "a parameter got a gradient that it did not get in the first step"
                )
            bucket.missing -= 1
            if bucket.missing == 0:
                self._send()

        return hook

    def _send(self) -> None:
        """The buckets that are full, in the same order on every rank."""
        assert self._buckets is not None
        while self._sent < len(self._buckets) and self._buckets[self._sent].missing == 0:
            if self._sent == 0 and self._times is not None:
                self._times.began()
            self._buckets[self._sent].begin()
            self._sent += 1

    def _order(self) -> list[int]:
        """Indices of the parameters in the order in which rank 0's gradients were there."""
        device = self._parameters[0].device
        places = torch.full((len(self._parameters),), -1, dtype=torch.int64, device=device)
        last_first = dict.fromkeys(reversed(self._arrived))
        order = torch.tensor([*reversed(last_first)], dtype=torch.int64, device=device)
        places[: len(order)] = order
        dist.broadcast(places, src=0)
        return [index for index in places.tolist() if index >= 0]


class _Bucket:
    def __init__(
        self,
        parameters: list[nn.Parameter],
        world_size: int,
        bf16: bool,
        copies_on: torch.cuda.Stream | None,
    ) -> None:
        self.parameters = parameters
        self.expected = 0  # gradients of a step
        self.missing = 0  # of this one; the first step's are there
        self._world_size = world_size
        first = parameters[0]
        self._compressed = bf16 and first.dtype == torch.float32
        dtype = torch.bfloat16 if self._compressed else first.dtype
        moved = self._compressed or copies_on is not None
        self._large = [] if moved else [e for e in parameters if _bytes(e) >= LARGE]
        in_place = {id(entry) for entry in self._large}
        self._small = [entry for entry in parameters if id(entry) not in in_place]
        lanes = max(1, ALIGNED // dtype.itemsize)
        sizes = [math.ceil(entry.numel() / lanes) * lanes for entry in self._small]
        self._peers: PeerMean | None = None
        if copies_on is None:
            self._flat = torch.zeros(sum(sizes), dtype=dtype, device=first.device)
        else:
            self._peers = PeerMean(sum(sizes), dtype, first.device, copies_on)
            self._flat = self._peers.flat
        self._views = [
            view.as_strided(entry.shape, entry.stride())
            for view, entry in zip(self._flat.split(sizes), self._small, strict=True)
        ]
        self._divides = dist.get_backend() == "nccl"  # on its way; gloo only adds
        self._work: dist.Work | None = None

    def begin(self) -> None:
        absent = sum(entry.grad is None for entry in self.parameters)
        if absent:  # the other ranks would wait for this one's
            raise RuntimeError(f"{absent} parameters got a gradient on rank 0 and none here")
        if self._peers is not None:
            self._peers.begin(self._views, _gradients(self._small))
            return
        pieces = _gradients(self._large)
        if self._small:
            torch._foreach_copy_(self._views, _gradients(self._small))
            pieces.append(self._flat)
        options = dist.AllreduceCoalescedOptions()
        options.asyncOp = True
        if self._divides:
            options.reduceOp = dist.ReduceOp(dist.ReduceOp.AVG)
        else:
            torch._foreach_div_(pieces, self._world_size)  # before the sum, as DDP does
        # Not dist.all_reduce_coalesced, whose future makes the host wait.
        world = dist.group.WORLD
        assert world is not None
        self._work = world.allreduce_coalesced(pieces, options)

    def finish(self) -> None:
        if self._peers is not None:
            self._peers.wait()
        elif self._work is not None:
            self._work.wait()
        self._work, self.missing = None, self.expected
        if self._compressed:
            torch._foreach_copy_(_gradients(self._small), self._views)
            return
        for entry, view in zip(self._small, self._views, strict=True):
            entry.grad = view

    def leave(self) -> None:
        if self._peers is not None:
            self._peers.leave()


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [entry.grad for entry in parameters if entry.grad is not None]


def _bytes(entry: nn.Parameter) -> int:
    return entry.numel() * entry.element_size()


def _cut(parameters: list[nn.Parameter], sizes: Buckets) -> list[list[nn.Parameter]]:
    """Buckets of one dtype each, in the order in which gradients arrive."""
    last, held = len(parameters), 0
    while last and held + _bytes(parameters[last - 1]) <= sizes.last:
        last -= 1
        held += _bytes(parameters[last])
    return [*_filled(parameters[:last], sizes), *_filled(parameters[last:], sizes)]


def _filled(parameters: list[nn.Parameter], sizes: Buckets) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    held, limit = 0, sizes.first
    for entry in parameters:
        if not buckets or held >= limit or buckets[-1][0].dtype != entry.dtype:
            limit = sizes.usual if buckets else sizes.first
            buckets.append([])
            held = 0
        buckets[-1].append(entry)
        held += _bytes(entry)
    return buckets
