"""Cross-entropy of maps as two Triton kernels, each of which reads the logits once.

A program has some pixels and all of their classes. Nothing is added across pixels here, so there is
no order of adding to choose.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, WARPS = 256, 4  # pixels of a program


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    logits,
    target,
    count,
    ignored,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    C: tl.constexpr,
    LANES: tl.constexpr,
    P: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    real = pixel < count
    named = tl.load(target + pixel, mask=real, other=0)
    lane = tl.arange(0, LANES)[None, :]
    first = pixel // pixels * stride_b + pixel % pixels * stride_p
    place = first[:, None] + lane * stride_c
    inside = real[:, None] & (lane < C)
    value = tl.load(logits + place, mask=inside, other=float("-inf")).to(tl.float32)
    largest = tl.max(value, 1)
    shifted = value - largest[:, None]
    total = tl.log(tl.sum(tl.exp(shifted), 1))
    hit = lane == named[:, None]
    counted = named != ignored
    known = counted & (named >= 0) & (named < C)
    return pixel, real, named, place, inside, shifted, total, hit, counted, known


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    logits,
    target,
    weight,
    losses,
    weights,
    count,
    ignored,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    C: tl.constexpr,
    LANES: tl.constexpr,
    P: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    pixel, real, named, _, _, shifted, total, hit, counted, known = _read(
        logits, target, count, ignored, pixels, stride_b, stride_c, stride_p, C, LANES, P
    )
    if WEIGHTED:
        own = tl.load(weight + named, mask=real & known, other=0.0)
    else:
        own = known.to(tl.float32)
    unlikely = total - tl.sum(tl.where(hit, shifted, 0.0), 1)
    loss = tl.where(known, own * unlikely, tl.where(counted, float("nan"), 0.0))
    tl.store(losses + pixel, loss, mask=real)
    tl.store(weights + pixel, own, mask=real)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    logits,
    target,
    weights,
    gradients,
    out,
    count,
    ignored,
    pixels,
    stride_b,
    stride_c,
    stride_p,
    gradient_stride,
    C: tl.constexpr,
    LANES: tl.constexpr,
    P: tl.constexpr,
):
    pixel, real, _, place, inside, shifted, total, hit, _, _ = _read(
        logits, target, count, ignored, pixels, stride_b, stride_c, stride_p, C, LANES, P
    )
    own = tl.load(weights + pixel, mask=real, other=0.0)
    upstream = tl.load(gradients + pixel * gradient_stride, mask=real, other=0.0)
    likely = tl.exp(shifted - total[:, None])
    gradient = (own * upstream)[:, None] * (likely - hit.to(tl.float32))
    gradient = tl.where((own == 0.0)[:, None], 0.0, gradient)
    tl.store(out + place, gradient.to(out.dtype.element_ty), mask=inside)


class EntropyOfMap(torch.autograd.Function):
    """Each pixel's loss, and the weight with which it counts: (B, H, W) float32, both.

    Of `logits` (B, C, H, W), `target` (B, H, W) int64, and `weight` (C) float32 or None. Only the
    loss has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int
    ) -> tuple[Tensor, Tensor]:
        logits, target = _rows_that_follow_each_other(logits), target.contiguous()
        losses = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
        weights = torch.empty_like(losses)
        sizes, classes = _sizes(logits, target, ignored)
        _forward[_grid(target)](
            logits,
            target,
            losses if weight is None else weight.contiguous(),
            losses,
            weights,
            *sizes,
            **classes,
            WEIGHTED=weight is not None,
        )
        ctx.save_for_backward(logits, target, weights)
        ctx.ignored = ignored
        ctx.mark_non_differentiable(weights)
        return losses, weights

    @staticmethod
    def backward(ctx: Any, gradients: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
        logits, target, weights = ctx.saved_tensors
        every = all(stride == 0 for stride in gradients.stride())  # of a sum or of a mean
        gradients = gradients if every else gradients.contiguous()
        out = torch.empty_like(logits)
        sizes, classes = _sizes(logits, target, ctx.ignored)
        _backward[_grid(target)](
            logits, target, weights, gradients, out, *sizes, 0 if every else 1, **classes
        )
        return out, None, None, None


def _rows_that_follow_each_other(logits: Tensor) -> Tensor:
    """Pixels of one picture at one distance from each other, in any order of the dimensions."""
    dense = any(
        logits.is_contiguous(memory_format=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    return logits if dense else logits.contiguous()


def _sizes(logits: Tensor, target: Tensor, ignored: int) -> tuple[tuple[int, ...], dict[str, int]]:
    batch, channel, _, pixel = logits.stride()
    classes = logits.shape[1]
    return (target.numel(), ignored, target[0].numel(), batch, channel, pixel), {
        "C": classes,
        "LANES": triton.next_power_of_2(classes),
        "P": PIXELS,
        "num_warps": WARPS,
    }


def _grid(target: Tensor) -> tuple[int]:
    return (triton.cdiv(target.numel(), PIXELS),)
