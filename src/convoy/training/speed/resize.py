"""Bilinear resizing as two matrix products: deterministic, and its backward pass has no atomics.

Interpolating an axis from n to m points is a matrix (m, n) with at most two weights in a row; the
gradient is a product with its transpose.
"""

import torch
from torch import Tensor


def resize_bilinear(
    image: Tensor, height: Tensor, width: Tensor, channels_last: bool = False
) -> Tensor:
    """`image` (B, C, h, w) to (B, C, H, W) by `height` (H, h) and `width` (W, w), in image's dtype.

    The result lies in memory as `image` does, or with channels last where that is asked for.
    """
    last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    height, width = height.to(image.dtype), width.to(image.dtype)
    # Autocast would round float32 inputs to bfloat16; interpolation computes in its input's dtype.
    with torch.autocast(image.device.type, enabled=False):
        if not (channels_last or last):
            return height @ (image @ width.T)
        batch, channels, rows, _ = image.shape
        by_row = width @ image.permute(0, 2, 3, 1)  # (B, h, W, C)
        resized = height @ by_row.reshape(batch, rows, -1)  # (B, H, W * C)
        return resized.view(batch, height.shape[0], -1, channels).permute(0, 3, 1, 2)


def bilinear_weights(
    source: int, target: int, device: torch.device, scale: float | None, align_corners: bool
) -> Tensor:
    """(target, source) float32 weights of torch's `linear` and `bilinear` modes along one axis.

    `scale` is interpolate's `scale_factor`, None where a size was asked for. Positions are computed
    in float32, as torch does.
    """
    points = torch.arange(target, dtype=torch.float32, device=device)
    if align_corners:
        points = points * ((source - 1) / (target - 1) if target > 1 else 0.0)
    else:
        step = 1 / scale if scale is not None else source / target
        points = (points + 0.5) * step - 0.5
    points = points.clamp(0, source - 1)
    columns = torch.arange(source, dtype=torch.float32, device=device)
    return (1 - (points[:, None] - columns).abs()).clamp(min=0)
