"""Brings the next batch to the GPU, and decodes it there, while the present one is trained on."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from convoy.data.packed_batch import PackedBatch
from convoy.errors import ConvoyError


class DeviceBatch(tuple[Any, Any]):
    """(features, targets) that are on the device already."""

    __slots__ = ()


class DevicePrefetcher:
    """The loader's batches on `device`, copied on a stream of their own.

    Whoever takes one batch and goes has it at once: reading ahead begins with the second. What a
    loader could not read (a ConvoyError) is passed on in its turn.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self._loader, self._device = loader, device

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """The loader's own: Lightning looks for `sampler`, callbacks for `dataset`."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[DeviceBatch | ConvoyError]:
        stream = torch.cuda.Stream(self._device)
        batches = iter(self._loader)
        waiting: list[tuple[DeviceBatch | ConvoyError, torch.cuda.Event]] = []
        ahead = 0
        for batch in batches:
            waiting.append(self._begin(batch, stream))
            if len(waiting) > ahead:
                yield _ready(waiting.pop(0))
                ahead = 1
        for entry in waiting:
            yield _ready(entry)

    def _begin(
        self, batch: Any, stream: torch.cuda.Stream
    ) -> tuple[DeviceBatch | ConvoyError, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            if isinstance(batch, ConvoyError):
                moved: DeviceBatch | ConvoyError = batch
            elif isinstance(batch, PackedBatch):
                moved = DeviceBatch(batch.to(self._device).decode())
            else:
                moved = DeviceBatch(pytree.tree_map(self._move, tuple(batch)))
            return moved, stream.record_event()

    def _move(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value


def _ready(entry: tuple[DeviceBatch | ConvoyError, torch.cuda.Event]) -> DeviceBatch | ConvoyError:
    batch, copied = entry
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    if isinstance(batch, DeviceBatch):
        for value in pytree.tree_leaves(tuple(batch)):
            if isinstance(value, Tensor):
                value.record_stream(stream)
    return batch
