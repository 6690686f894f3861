"""The agent's own optimizer, told to do its arithmetic in few kernels."""

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

FUSED = (Adam, AdamW, SGD)


def make_fused(optimizer: Optimizer, on: bool) -> str | None:
    """Set the groups' `fused` (as the agent asked for it where not `on`); call after resuming.

    Returns why the optimizer stays as it is, or None.
    """
    if type(optimizer) not in FUSED:
        return f"torch has no fused {type(optimizer).__name__}"
    own = optimizer.defaults.get("fused")
    for group in optimizer.param_groups:
        suits = all(entry.is_cuda and entry.is_floating_point() for entry in group["params"])
        group["fused"] = True if on and suits and not group["differentiable"] else own
        if group["fused"]:
            group["foreach"] = False
            for entry in group["params"]:
                _counter_to_device(optimizer, entry)
        elif own is None:
            group["foreach"] = optimizer.defaults.get("foreach")
    return None if any(group["fused"] for group in optimizer.param_groups) else "not on a GPU"


def _counter_to_device(optimizer: Optimizer, parameter: torch.Tensor) -> None:
    """A checkpoint of an optimizer that was not fused counts its steps on the host."""
    counter = optimizer.state.get(parameter, {}).get("step")
    if isinstance(counter, torch.Tensor):
        optimizer.state[parameter]["step"] = counter.to(parameter.device, torch.float32)


class CapturedRates:
    """Learning rates that a CUDA graph reads from the device, while the optimizer keeps numbers.

    Schedulers and checkpoints see the optimizer as the agent made it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = optimizer.param_groups
        self._rates = [float(group["lr"]) for group in self._groups]
        self._tensors = [
            torch.tensor(rate, dtype=torch.float32, device=group["params"][0].device)
            for rate, group in zip(self._rates, self._groups, strict=True)
        ]
        self._capturable = [group["capturable"] for group in self._groups]
        self._others = self._other_settings()

    def __enter__(self) -> None:
        """Inside, the groups hold the tensors: for the capture."""
        for group, tensor in zip(self._groups, self._tensors, strict=True):
            group["lr"], group["capturable"] = tensor, True

    def __exit__(self, *_: object) -> None:
        for index, group in enumerate(self._groups):
            group["lr"], group["capturable"] = self._rates[index], self._capturable[index]

    def update(self) -> bool:
        """Bring changed rates to the device; False where another setting of a group changed."""
        for index, group in enumerate(self._groups):
            if group["lr"] != self._rates[index]:
                self._rates[index] = float(group["lr"])
                self._tensors[index].fill_(self._rates[index])
        return self._others == self._other_settings()

    def _other_settings(self) -> list[tuple[object, ...]]:
        left_out = ("params", "lr", "capturable", "initial_lr")
        return [
            tuple(value for name, value in group.items() if name not in left_out)
            for group in self._groups
        ]


def can_be_captured(optimizer: Optimizer) -> bool:
    """Whether the step can be part of a CUDA graph: fused, its counters on the device."""
    return type(optimizer) in (Adam, AdamW) and all(
        group["fused"] and not isinstance(group["lr"], torch.Tensor)
        for group in optimizer.param_groups
    )
