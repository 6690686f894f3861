"""The mean of the gradients over the ranks, bucket by bucket while the backward pass still runs.

DistributedDataParallel does the same, and its hooks wait on the host now and then, which a CUDA
graph cannot hold. These buckets are filled and reduced by work on the device alone. The parameters
that take part are those that got a gradient in the first step; the same on every rank.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

FIRST_BUCKET = 1 << 20  # bytes: the last layers' gradients leave early
BUCKET = 25 << 20  # bytes, as DistributedDataParallel has it


class GradientMean:
    """Call `wait` after each backward pass: then `.grad` is the mean over the ranks."""

    def __init__(self, parameters: list[nn.Parameter], world_size: int, bf16: bool = False) -> None:
        """`bf16`: float32 gradients travel, and are added, as bfloat16: half the bytes."""
        self._parameters = [entry for entry in parameters if entry.requires_grad]
        self._world_size, self._bf16 = world_size, bf16
        self._buckets: list[_Bucket] | None = None

    def wait(self) -> None:
        """Finish the reductions; the first time, find out which parameters take part."""
        first = self._buckets is None
        if self._buckets is None:
            used = [entry for entry in reversed(self._parameters) if entry.grad is not None]
            self._buckets = [_Bucket(part, self._world_size, self._bf16) for part in _cut(used)]
        for bucket in self._buckets:
            if first:
                bucket.begin()
            bucket.finish()


class _Bucket:
    def __init__(self, parameters: list[nn.Parameter], world_size: int, bf16: bool) -> None:
        self._parameters = parameters
        self._world_size = world_size
        sizes = [entry.numel() for entry in parameters]
        first = parameters[0]
        self._compressed = bf16 and first.dtype == torch.float32
        dtype = torch.bfloat16 if self._compressed else first.dtype
        self._flat = torch.empty(sum(sizes), dtype=dtype, device=first.device)
        views = self._flat.split(sizes)
        self._views = [
            view.as_strided(entry.shape, entry.stride())
            for view, entry in zip(views, parameters, strict=True)
        ]
        self._missing = len(parameters)
        self._work: dist.Work | None = None
        for entry in parameters:
            entry.register_post_accumulate_grad_hook(self._arrived())

    def _arrived(self) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            self._missing -= 1
            if self._missing == 0:
                self.begin()

        return hook

    def begin(self) -> None:
        gradients = [entry.grad for entry in self._parameters if entry.grad is not None]
        torch._foreach_copy_(self._views, gradients)
        self._flat.div_(self._world_size)  # before the sum, as DistributedDataParallel does
        self._work = dist.all_reduce(self._flat, async_op=True)

    def finish(self) -> None:
        if self._work is None:
            raise RuntimeError(f"{self._missing} parameters got no gradient in this step")
        self._work.wait()
        self._work, self._missing = None, len(self._parameters)
        if self._compressed:
            gradients = [entry.grad for entry in self._parameters if entry.grad is not None]
            torch._foreach_copy_(gradients, self._views)
            return
        for entry, view in zip(self._parameters, self._views, strict=True):
            entry.grad = view


def _cut(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Buckets of one dtype each, in the order in which gradients arrive."""
    buckets: list[list[nn.Parameter]] = []
    held, limit = 0, FIRST_BUCKET
    for entry in parameters:
        if not buckets or held >= limit or buckets[-1][0].dtype != entry.dtype:
            limit = BUCKET if buckets else FIRST_BUCKET
            buckets.append([])
            held = 0
        buckets[-1].append(entry)
        held += entry.numel() * entry.element_size()
    return buckets
