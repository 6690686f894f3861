"""Means of an agent's scalars over steps and ranks, without waiting for a GPU at any step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.training.process_group import HostGroup

_KEPT = 64  # steps whose scalars are kept as they are before they are summed on their device


@dataclass(frozen=True)
class Sums:
    """What was added up on the device, on its way to the host."""

    names: tuple[str, ...]
    sums: Tensor  # float64 (names,), on the host
    weights: Tensor  # likewise
    arrived: torch.cuda.Event | None

    @property
    def on_their_way(self) -> bool:
        """Whether they come from a GPU, so that who reads them at once waits for it."""
        return self.arrived is not None

    def over_ranks(self, host_group: HostGroup) -> dict[str, float]:
        """The means over all ranks of the names that any of them has; waits for the sums and for
        the other ranks."""
        if self.arrived is not None:
            self.arrived.synchronize()
        total, count = host_group.sum(torch.stack([self.sums, self.weights])).tolist()
        return {
            name: value / weight
            for name, value, weight in zip(self.names, total, count, strict=True)
            if weight
        }


class Means:
    """Weighted means of named scalars; a name may be absent from any step.

    `names` must be the same on all ranks: what `over_ranks` sums has no names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._kept: list[tuple[Mapping[str, Tensor], int]] = []
        self._sums: Tensor | None = None  # float64 (names,), on the scalars' device
        self._weights = [0] * len(self.names)

    def add(self, scalars: Mapping[str, Tensor], weight: int = 1) -> None:
        """One step's scalars, detached; of `weight` samples or steps. Unknown names are ignored."""
        self._kept.append((scalars, weight))
        for position, name in enumerate(self.names):
            self._weights[position] += weight if name in scalars else 0
        if len(self._kept) == _KEPT:
            self._fold()

    def send(self) -> Sums:
        """All that was added so far, on its way to the host."""
        self._fold()
        weights = torch.tensor(self._weights, dtype=torch.float64)
        if self._sums is None or not self._sums.is_cuda:
            sums = torch.zeros_like(weights) if self._sums is None else self._sums
            return Sums(self.names, sums, weights, None)
        memory = torch.empty(len(self.names), dtype=torch.float64, pin_memory=True)
        memory.copy_(self._sums, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Sums(self.names, memory, weights, arrived)

    def over_ranks(self, host_group: HostGroup) -> dict[str, float]:
        """The means over all ranks of the names that any of them has; waits for the device and for
        the other ranks."""
        return self.send().over_ranks(host_group)

    def _fold(self) -> None:
        if not self._kept:
            return
        device = next((v.device for scalars, _ in self._kept for v in scalars.values()), None)
        absent = torch.zeros((), device=device)
        rows = torch.stack(
            [scalars.get(name, absent).float() for scalars, _ in self._kept for name in self.names]
        ).reshape(len(self._kept), len(self.names))
        # From pageable memory a copy to the GPU makes the host wait for it.
        weights = torch.tensor(
            [[weight] for _, weight in self._kept], dtype=torch.float64, pin_memory=rows.is_cuda
        )
        summed = (rows.double() * weights.to(rows.device, non_blocking=True)).sum(dim=0)
        self._sums = summed if self._sums is None else self._sums + summed
        self._kept = []
