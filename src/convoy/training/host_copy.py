"""A copy of a training's state in host memory that is kept from one copy to the next.

torch.distributed.checkpoint has such a stager, but that of torch 2.11 can be used once only.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Memory for copies of one state: pinned for tensors of a GPU, so that they are fast."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def of(self, state: dict[str, Any]) -> dict[str, Any]:
        """A deep copy of `state`, its tensors on the host. The next call writes over them.

        Tensors that are the same memory in `state` are one tensor in the copy.
        """
        copies: dict[Any, Tensor] = {}
        memo: dict[int, Any] = {}
        for _, tensor in named_tensors(state):
            if tensor.layout is not torch.strided:
                memo[id(tensor)] = tensor.detach().to("cpu", copy=True)
                continue
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in copies:
                copies[place] = self._fill(len(copies), tensor)
            memo[id(tensor)] = copies[place]
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copy.deepcopy(state, memo)

    def _fill(self, index: int, tensor: Tensor) -> Tensor:
        kept = self._kept[index] if index < len(self._kept) else None
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty_like(
                tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False
            )
            self._kept[index : index + 1] = [kept]
        return kept.copy_(tensor, non_blocking=True)


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested mappings, lists and tuples, under their keys joined by dots."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from named_tensors(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from named_tensors(below, f"{name}.{index}" if name else str(index))
