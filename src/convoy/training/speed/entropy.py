"""Cross-entropy of maps without gathering: torch's on a GPU adds in an order of its own, and raises
an error where deterministic algorithms are asked for."""

import torch
from torch import Tensor
from torch.nn import functional


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
        likelihood = functional.log_softmax(logits.float() if halved else logits, dim=1)
        classes = torch.arange(logits.shape[1], device=logits.device)[None, :, None, None]
        hit = target[:, None] == classes
        weights = hit.to(likelihood.dtype)
        if weight is not None:
            weights = weights * weight.to(likelihood.dtype)[None, :, None, None]
        counted = target != ignored
        weights = weights * counted[:, None]
        unknown = counted & ~hit.any(1)
        losses = -(weights * torch.where(hit, likelihood, 0)).sum(1)
        losses = losses.masked_fill(unknown, float("nan"))
        if reduction == "none":
            return losses
        return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()
