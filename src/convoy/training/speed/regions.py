"""Compiles a forward pass in regions, so that gradients leave while the backward pass still runs.

A compiled function hands over all of its gradients when its backward pass ends: the ranks would
exchange them afterwards, with nothing beside it. So the graph is cut where torch's DDPOptimizer
cuts it under DistributedDataParallel: from its end, after so many bytes of parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo import lookup_backend
from torch._dynamo.backends.distributed import propagate_dynamo_source, propagate_metadata
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.split_module import split_module

FIRST_REGION = 1 << 20  # bytes of parameters, of the last layers: their gradients leave early
REGION = 16 << 20


def compiled(
    forward: Callable[..., Any], compiler: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """`forward`, of which each region has about `REGION` of parameters and is compiled alone."""
    compile_graph = lookup_backend(compiler)

    def in_regions(graph: fx.GraphModule, _: Any, **__: Any) -> Callable[..., Any]:
        number = _cut(graph.graph)
        if len(set(number.values())) < 2:
            return _Region(graph, compile_graph)
        whole = split_module(graph, None, number.__getitem__)  # type: ignore[arg-type]
        # By these torch's compiler tells which of a region's inputs are parameters.
        propagate_dynamo_source(graph, whole)
        propagate_metadata(graph, whole)
        for node in whole.graph.find_nodes(op="call_module"):
            setattr(whole, node.target, _Region(getattr(whole, node.target), compile_graph))
        return whole

    cut: Callable[..., Any] = torch.compile(forward, dynamic=False, backend=in_regions)
    return cut


def _cut(graph: fx.Graph) -> dict[fx.Node, int]:
    """The number of each operation's region, in the graph's order."""
    regions: list[set[fx.Node]] = [set()]  # the last one first
    held = 0  # bytes of parameters in the region that grows
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output"):
            continue
        is_full = held >= (FIRST_REGION if len(regions) == 1 else REGION)
        if is_full and _hands_over(regions[-1]):
            regions.append(set())
            held = 0
        regions[-1].add(node)
        held += sum(_trained_bytes(each) for each in node.all_input_nodes)
    if not held and len(regions) > 1:  # what comes before the first parameter
        first = regions.pop()
        regions[-1] |= first
    return {node: number for number, region in enumerate(reversed(regions)) for node in region}


def _hands_over(region: set[fx.Node]) -> bool:
    """Torch cannot split off what only writes in place."""
    return any(user not in region for node in region for user in node.users)


def _trained_bytes(node: fx.Node) -> int:
    """Of a parameter that is trained."""
    value = node.meta.get("example_value") if node.op == "placeholder" else None
    if not isinstance(value, nn.Parameter) or not value.requires_grad:
        return 0
    return value.untyped_storage().nbytes()


class _Region(nn.Module):
    """Compiled at its first call, by the layouts that the regions before it really hand over.

    DDPOptimizer compiles one region after another before the first call. That leaves torch's cache
    of what autograd traced out, so that each start would trace every region again.
    """

    def __init__(self, graph: fx.GraphModule, compile_graph: Callable[..., Any]) -> None:
        super().__init__()
        self._graph, self._compile_graph = graph, compile_graph
        self._compiled: Callable[..., Any] | None = None
        (output,) = graph.graph.find_nodes(op="output")
        self._is_single = not isinstance(output.args[0], tuple | list)
        if self._is_single:  # torch's compilers ask for several
            output.args = (output.args,)
            graph.recompile()

    def forward(self, *inputs: Any) -> Any:
        if self._compiled is None:
            mode = FakeTensorMode(shape_env=ShapeEnv())  # what the cache's key asks for
            described = [
                mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
                for value in inputs
            ]
            with tracing(TracingContext(mode)):
                self._compiled = self._compile_graph(self._graph, described)
        outputs = self._compiled(*inputs)
        return outputs[0] if self._is_single else outputs
