"""Parts of a batch as NAVSIM's collating makes it: tensors with the batch in dimension 0, lists of
strings, and dicts, lists and tuples of those."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def first(count: int, batch: Any) -> Any:
    """The first `count` samples of a batch, as a batch."""
    return _each(batch, lambda entries: entries[:count])


def _each(batch: Any, take: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Tensor):
        return take(batch)
    if isinstance(batch, Mapping):
        return {name: _each(value, take) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        if any(isinstance(value, (str, bytes)) for value in batch):
            return take(batch)
        values = [_each(value, take) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
