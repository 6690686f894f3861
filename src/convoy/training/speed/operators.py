"""Replaces torch's resizing and pooling, wherever an agent calls them, by forms of the same values.

The functions are replaced in `torch.nn.functional`, where modules (`nn.Upsample`,
`nn.AdaptiveAvgPool2d`) and agents' own code look them up, so nothing of an agent is edited and a
fork gets them too. What the fast forms do not cover goes to torch's own function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from convoy.training.speed.pool import adaptive_average
from convoy.training.speed.resize import bilinear_weights, resize_bilinear

_torch_interpolate: Callable[..., Tensor] = functional.interpolate
_torch_adaptive_avg_pool2d: Callable[..., Tensor] = functional.adaptive_avg_pool2d


_channels_last = False  # what is resized from small to large shall lie so


@contextmanager
def replaced(channels_last: bool = False) -> Iterator[None]:
    """While this is open, agents resize and pool by the fast forms.

    `channels_last`: what is enlarged comes out so, whatever its source was.
    """
    global _channels_last
    before = functional.interpolate, functional.adaptive_avg_pool2d, _channels_last
    functional.interpolate, functional.adaptive_avg_pool2d = interpolate, adaptive_avg_pool2d
    _channels_last = channels_last
    try:
        yield
    finally:
        functional.interpolate, functional.adaptive_avg_pool2d, _channels_last = before


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """`torch.nn.functional.interpolate`, with matrix products for bilinear resizing of floats."""
    covered = mode == "bilinear" and not antialias and not recompute_scale_factor
    if not covered or input.ndim != 4 or not input.is_floating_point():
        return _torch_interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    height, width = input.shape[2:]
    scales: tuple[Any, Any] = (None, None) if size is not None else _pair(scale_factor)
    if size is not None:
        targets = _pair(size)
    else:
        targets = (int(height * scales[0]), int(width * scales[1]))
    # Not kept in a table: a compiler traces this with tensors that hold no values.
    rows = bilinear_weights(height, targets[0], input.device, scales[0], bool(align_corners))
    columns = bilinear_weights(width, targets[1], input.device, scales[1], bool(align_corners))
    larger = targets[0] * targets[1] > height * width
    return resize_bilinear(input, rows, columns, _channels_last and larger)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` with a deterministic backward pass."""
    if input.ndim != 4:
        return _torch_adaptive_avg_pool2d(input, output_size)
    rows, columns = _pair(output_size)
    height, width = input.shape[2:]
    return adaptive_average(
        input, height if rows is None else rows, width if columns is None else columns
    )


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, (tuple, list, torch.Size)) else (value, value)
