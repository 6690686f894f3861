"""Max-pooling 3 x 3 with stride 2 and a border of 1, as Triton kernels that torch's compiler calls.

Pictures lie with channels last. A tap is a place in a window: row times three plus column.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, WARPS = 32, 4  # pooled pixels of a program


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    image,
    values,
    taps,
    count,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    LANES: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    channel = tl.arange(0, LANES)[None, :]
    j = pixel % (W // 2)
    i = pixel // (W // 2) % (H // 2)
    picture = pixel // ((W // 2) * (H // 2)) * (H * W)
    real = (pixel < count)[:, None] & (channel < C)
    best = tl.full((P, LANES), float("-inf"), tl.float32)
    first = tl.where(i == 0, 3, 0) + tl.where(j == 0, 1, 0)  # of the taps in the picture
    tap = tl.broadcast_to(first[:, None], (P, LANES))
    for place in tl.static_range(9):
        row, column = 2 * i - 1 + place // 3, 2 * j - 1 + place % 3
        inside = real & ((row >= 0) & (column >= 0))[:, None]
        source = (picture + row * W + column)[:, None] * C + channel
        value = tl.load(image + source, mask=inside, other=float("-inf")).to(tl.float32)
        better = inside & ((value > best) | (value != value))
        best = tl.where(better, value, best)
        tap = tl.where(better, place, tap)
    target = pixel[:, None] * C + channel
    tl.store(values + target, best.to(values.dtype.element_ty), mask=real)
    tl.store(taps + target, tap.to(tl.int8), mask=real)


@triton.jit
def _window(gradients, taps, target, inside):
    gradient = tl.load(gradients + target, mask=inside, other=0.0).to(tl.float32)
    return gradient, tl.load(taps + target, mask=inside, other=9)


@triton.jit
def _of(gradient, tap, place: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.where(tap == place, gradient, 0.0)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    gradients,
    taps,
    out,
    count,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    LANES: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    channel = tl.arange(0, LANES)[None, :]
    j = pixel % (W // 2)
    i = pixel // (W // 2) % (H // 2)
    picture = pixel // ((W // 2) * (H // 2)) * (H * W)
    real = (pixel < count)[:, None] & (channel < C)
    below, right = (i + 1 < H // 2)[:, None], (j + 1 < W // 2)[:, None]
    at = pixel[:, None] * C + channel
    g, t = _window(gradients, taps, at, real)
    g_right, t_right = _window(gradients, taps, at + C, real & right)
    g_below, t_below = _window(gradients, taps, at + (W // 2) * C, real & below)
    g_both, t_both = _window(gradients, taps, at + (W // 2 + 1) * C, real & below & right)
    upper_left = _of(g, t, 4)
    upper_right = _of(g, t, 5) + _of(g_right, t_right, 3)
    lower_left = _of(g, t, 7) + _of(g_below, t_below, 1)
    lower_right = (_of(g, t, 8) + _of(g_right, t_right, 6)) + (
        _of(g_below, t_below, 2) + _of(g_both, t_both, 0)
    )
    target = (picture + 2 * i * W + 2 * j)[:, None] * C + channel
    dtype = out.dtype.element_ty
    tl.store(out + target, upper_left.to(dtype), mask=real)
    tl.store(out + target + C, upper_right.to(dtype), mask=real)
    tl.store(out + target + W * C, lower_left.to(dtype), mask=real)
    tl.store(out + target + W * C + C, lower_right.to(dtype), mask=real)


@torch.library.custom_op("convoy::max_pool", mutates_args=())
def pooled(image: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) to the largest values (B, C, H / 2, W / 2) and their taps, int8."""
    image = image.contiguous(memory_format=torch.channels_last)
    values, taps = _like_pooled(image)
    _launch(_forward, image, values, taps, shape=image.shape)
    return values, taps


@torch.library.custom_op("convoy::max_pool_backward", mutates_args=())
def unpooled(gradients: Tensor, taps: Tensor) -> Tensor:
    """The picture's gradient, of the pooled one's and of the taps."""
    gradients = gradients.contiguous(memory_format=torch.channels_last)
    out = _like_picture(gradients)
    _launch(_backward, gradients, taps, out, shape=out.shape)
    return out


def _launch(kernel: Any, *tensors: Tensor, shape: torch.Size) -> None:
    batch, channels, height, width = shape
    count = batch * height * width // 4
    sizes = {"H": height, "W": width, "C": channels, "P": PIXELS}
    lanes = triton.next_power_of_2(channels)
    kernel[(triton.cdiv(count, PIXELS),)](*tensors, count, **sizes, LANES=lanes, num_warps=WARPS)


def _like_pooled(image: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = image.shape
    values = image.new_empty(batch, height // 2, width // 2, channels).permute(0, 3, 1, 2)
    return values, torch.empty_like(values, dtype=torch.int8)


def _like_picture(gradients: Tensor) -> Tensor:
    batch, channels, height, width = gradients.shape
    return gradients.new_empty(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _keep_taps(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, gradients: Tensor | None, _: Any) -> Tensor | None:
    return None if gradients is None else unpooled(gradients, *ctx.saved_tensors)


pooled.register_fake(_like_pooled)
unpooled.register_fake(lambda gradients, taps: _like_picture(gradients))
pooled.register_autograd(_gradient, setup_context=_keep_taps)
