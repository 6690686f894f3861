"""Replaces operators of torch, wherever an agent calls them, by forms of the same values that are
faster and deterministic: resizing, pooling, first convolutions, cross-entropy of maps.

The functions are replaced in `torch.nn.functional`, where modules (`nn.Upsample`, `nn.MaxPool2d`)
and agents' own code look them up, so nothing of an agent is edited and a fork gets them too. What
the fast forms do not cover goes to torch's own function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import trace_rules
from torch.nn import functional

from convoy.training.speed import max_pool as pooling
from convoy.training.speed import stem
from convoy.training.speed.entropy import cross_entropy_of_map
from convoy.training.speed.pool import adaptive_average
from convoy.training.speed.resize import bilinear_weights, resize_bilinear

_torch_interpolate: Callable[..., Tensor] = functional.interpolate
_torch_adaptive_avg_pool2d: Callable[..., Tensor] = functional.adaptive_avg_pool2d
_torch_max_pool2d: Callable[..., Any] = functional.max_pool2d
_torch_conv2d: Callable[..., Tensor] = functional.conv2d
_torch_cross_entropy: Callable[..., Tensor] = functional.cross_entropy


_channels_last = False  # what is resized from small to large shall lie so


@contextmanager
def replaced(channels_last: bool = False) -> Iterator[None]:
    """While this is open, agents resize and pool by the fast forms.

    `channels_last`: what is enlarged comes out so, whatever its source was.
    """
    global _channels_last
    # Dynamo looks torch's functions up by their names, once, and anew after init_process_group. It
    # would take these for torch's then: not trace into them, and torch's cache would keep nothing.
    trace_rules.get_torch_obj_rule_map()
    forms = {entry.__name__: entry for entry in FORMS}
    before = {name: getattr(functional, name) for name in forms}, _channels_last
    for name, form in forms.items():
        setattr(functional, name, form)
    _channels_last = channels_last
    try:
        yield
    finally:
        functions, _channels_last = before
        for name, function in functions.items():
            setattr(functional, name, function)


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


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`torch.nn.functional.max_pool2d`, on a GPU with a fast and deterministic backward pass for
    3 x 3 windows with a stride of 2."""
    if (
        dilation in (1, (1, 1), [1, 1])
        and not (ceil_mode or return_indices)
        and pooling.suits(input, kernel_size, stride, padding)
    ):
        return pooling.max_pool(input)
    return _torch_max_pool2d(
        input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`; where channels come last, one of stride 2 from few channels
    reads cells of 2 x 2 pixels."""
    if _channels_last and groups == 1 and stem.suits(input, weight, stride, padding, dilation):
        return stem.cells_convolution(input, weight, bias, padding)
    return _torch_conv2d(input, weight, bias, stride, padding, dilation, groups)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`, deterministic for maps of classes."""
    plain = size_average is None and reduce is None and label_smoothing == 0.0
    if plain and input.ndim == 4 and target.ndim == 3 and not target.is_floating_point():
        return cross_entropy_of_map(input, target, weight, ignore_index, reduction)
    return _torch_cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


FORMS = (interpolate, adaptive_avg_pool2d, max_pool2d, conv2d, cross_entropy)


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, (tuple, list, torch.Size)) else (value, value)
