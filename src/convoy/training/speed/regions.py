"""Compiles a forward pass in regions, so that gradients leave while the backward pass still runs.

A compiled function hands over all of its gradients when its backward pass ends: the ranks would
exchange them afterwards, with nothing beside it. DistributedDataParallel lets torch's DDPOptimizer
cut the graph into parts of a bucket's size; here the same is done without that wrapper.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo import lookup_backend
from torch._dynamo.backends.distributed import DDPOptimizer
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

FIRST_REGION = 1 << 20  # bytes of parameters, of the last layers: their gradients leave early
REGION = 16 << 20


def compiled(
    forward: Callable[..., Any], compiler: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """`forward`, of which each region has about `REGION` of parameters and is compiled alone."""
    compile_graph = lookup_backend(compiler)
    cutter = DDPOptimizer(
        REGION,
        lambda graph, _, **options: _Region(graph, compile_graph),
        FIRST_REGION,
    )
    whole: Callable[..., Any] = torch.compile(forward, dynamic=False, backend=cutter.compile_fn)
    return whole


class _Region:
    """Compiled at its first call, by the layouts that the regions before it really hand over.

    DDPOptimizer's own way, one region after another before the first call, leaves torch's cache of
    what autograd traced out, so that each start would trace every region again.
    """

    def __init__(self, graph: fx.GraphModule, compile_graph: Callable[..., Any]) -> None:
        self._graph, self._compile_graph = graph, compile_graph
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self._compiled is None:
            mode = FakeTensorMode(shape_env=ShapeEnv())  # what the cache's key asks for
            described = [
                mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
                for value in inputs
            ]
            with tracing(TracingContext(mode)):
                self._compiled = self._compile_graph(self._graph, described)
        return self._compiled(*inputs)
