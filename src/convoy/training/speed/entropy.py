"""Cross-entropy of maps without gathering: torch's on a GPU adds in an order of its own, and raises
an error where deterministic algorithms are asked for."""

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.speed.assignment import available

MOST_CLASSES = 64  # a kernel's program holds all classes of its pixels at once


def cross_entropy_of_map(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, reduction: str
) -> Tensor:
    """`cross_entropy(logits, target, weight, ignore_index=ignored, reduction=reduction)`.

    `logits` (B, C, H, W), `target` (B, H, W) whole numbers below C. Another number than a class or
    `ignored` makes the loss NaN; torch's kernel ends the process there.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # What autocast does to torch's: the loss is float32.
        halved = logits.dtype in (torch.float16, torch.bfloat16)
        if _suits(logits):
            from convoy.training.speed.entropy_kernel import EntropyOfMap

            weight = None if weight is None else weight.float()
            losses, weights = EntropyOfMap.apply(logits, target.long(), weight, ignored)
        else:
            logits = logits.float() if halved else logits
            losses, weights = _losses(logits, target, weight, ignored)
        if reduction == "none":
            return losses
        return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def _suits(logits: Tensor) -> bool:
    """Whether the kernels cover it: one reading of the logits in place of fifteen."""
    return (
        logits.is_cuda
        and logits.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and logits.shape[1] <= MOST_CLASSES
        and logits.numel() > 0
        and not torch.compiler.is_compiling()
        and available()
    )


def _losses(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int
) -> tuple[Tensor, Tensor]:
    """Each pixel's loss, and the weight with which it counts: (B, H, W), both."""
    likelihood = functional.log_softmax(logits, dim=1)
    classes = torch.arange(logits.shape[1], device=logits.device)[None, :, None, None]
    hit = target[:, None] == classes
    weights = hit.to(likelihood.dtype)
    if weight is not None:
        weights = weights * weight.to(likelihood.dtype)[None, :, None, None]
    counted = target != ignored
    weights = weights * counted[:, None]
    unknown = counted & ~hit.any(1)
    losses = -(weights * torch.where(hit, likelihood, 0)).sum(1)
    return losses.masked_fill(unknown, float("nan")), weights.sum(1)
