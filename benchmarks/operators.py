"""Milliseconds of TransFuser's slower operators, forward and backward: torch's beside Convoy's.

    python benchmarks/operators.py --batch 64 [--compiled]

Sizes are those of TransFuser's default configuration, in bfloat16 with channels last, as
`speed=default` and `max` train. `--compiled` lets torch's compiler have each operator alone, on
both sides; in a whole model it joins them with what is around them.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from report import print_report
from torch import Tensor, nn
from torch.nn import functional

from convoy.training.speed import attention, operators

WARM, ROUNDS = 10, 30
CHANNELS_LAST = torch.channels_last


class Scores(nn.Module):
    """Attention that writes its scores to memory."""

    def __init__(self, width: int, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.attn_drop, self.resid_drop = nn.Dropout(dropout), nn.Dropout(dropout)
        self.n_head = heads

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        size = width // self.n_head
        query, key, value = (
            layer(tokens).view(batch, count, self.n_head, size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = self.attn_drop((query @ key.transpose(-2, -1) / math.sqrt(size)).softmax(-1))
        joined = (scores @ value).transpose(1, 2).reshape(batch, count, width)
        return self.resid_drop(self.proj(joined))


@contextmanager
def ours() -> Iterator[None]:
    with operators.replaced(channels_last=True), attention.replaced([Scores]):
        yield


def cases(batch: int) -> Iterator[tuple[str, Callable[..., Any], Tensor, bool]]:
    """(name, operator, input, whether its gradient is wanted)."""

    def picture(channels: int, rows: int, columns: int) -> Tensor:
        drawn = torch.randn(batch, channels, rows, columns, device="cuda")
        return drawn.to(torch.bfloat16).to(memory_format=CHANNELS_LAST)

    def first(channels: int) -> nn.Module:
        layer = nn.Conv2d(channels, 64, 7, 2, 3, bias=False).cuda()
        return layer.to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]

    yield "first convolution, camera", first(3), picture(3, 256, 1024), False
    yield "first convolution, lidar", first(1), picture(1, 256, 256), False
    yield "max-pooling, camera", nn.MaxPool2d(3, 2, 1), picture(64, 128, 512).relu(), True
    yield "max-pooling, lidar", nn.MaxPool2d(3, 2, 1), picture(64, 128, 128).relu(), True
    for width in (64, 128, 256, 512):
        tokens = torch.randn(batch, 320, width, device="cuda", dtype=torch.bfloat16)
        yield f"attention, width {width}", Scores(width).cuda(), tokens, True
    classes = torch.randint(0, 7, (batch, 128, 256), device="cuda")
    entropy = lambda logits: functional.cross_entropy(logits, classes)  # noqa: E731
    yield "cross-entropy of the map", entropy, picture(7, 128, 256), True
    yield "pooling to anchors", nn.AdaptiveAvgPool2d((8, 32)), picture(64, 64, 256), True
    enlarge = nn.Upsample(size=(64, 256), mode="bilinear")
    yield "resizing", enlarge, picture(64, 8, 32), True


def milliseconds(operator: Callable[..., Tensor], value: Tensor, with_gradient: bool) -> float:
    """Of the GPU's work alone: the passes are one CUDA graph, as in training."""
    leaf = value.requires_grad_(with_gradient)

    def once() -> None:
        leaf.grad = None
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            result = operator(leaf)
        result.backward(torch.ones_like(result))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        once()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(ROUNDS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / ROUNDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--only", default="", help="operators with this in their name")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    results: dict[str, dict[str, float]] = {}
    for name, operator, value, with_gradient in cases(args.batch):
        if args.only not in name:
            continue
        results[name] = {}
        for side, context in (("torch", nullcontext()), ("convoy", ours())):
            with context:
                torch._dynamo.reset()
                taken = torch.compile(operator, dynamic=False) if args.compiled else operator
                results[name][side] = milliseconds(taken, value.detach(), with_gradient)
    rows = [
        (name, f"{ms['torch']:.2f}", f"{ms['convoy']:.2f}", f"{ms['torch'] / ms['convoy']:.1f}x")
        for name, ms in results.items()
    ]
    record = {"benchmark": "operators", "arguments": vars(args), "results": results}
    columns = ("forward and backward", "torch ms", "Convoy ms", "")
    print_report(f"operators, batch {args.batch}", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
