"""Makes kernels of a CUDA graph's memsets.

Libraries clear small workspaces all through a step, 240 times in one of TransFuser's. In a graph
each such node waits some 9 us on an H100, before and after it, where a kernel waits 2.
"""

from collections.abc import Callable
from typing import Any

import torch
from cuda.bindings import driver
from torch import Tensor

_TYPES = {1: ("|u1", torch.uint8), 2: ("<i2", torch.int16), 4: ("<i4", torch.int32)}


def replaced(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> int:
    """The number of memsets that are kernels now. RuntimeError where CUDA refuses; the graph holds
    what it held then.

    `graph` was captured with `keep_graph` and is not instantiated yet.
    """
    whole = driver.CUgraph(graph.raw_cuda_graph())
    memsets = [
        (node, _call(driver.cuGraphMemsetNodeGetParams, node))
        for node in _all(driver.cuGraphGetNodes, whole)
        if _call(driver.cuGraphNodeGetType, node)
        == driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMSET
    ]
    memsets = [(node, memset) for node, memset in memsets if memset.height == 1]
    if not memsets:
        return 0
    # torch's own kernels that fill: their nodes are made by capturing them.
    donor = torch.cuda.CUDAGraph(keep_graph=True)
    areas = [_area(memset) for _, memset in memsets]
    values = [_signed(memset.value, memset.elementSize) for _, memset in memsets]
    _load_kernels()
    with torch.cuda.graph(donor, stream=stream, capture_error_mode="thread_local"):
        for area, value in zip(areas, values, strict=True):
            area.fill_(value)
    fills = _in_order(driver.CUgraph(donor.raw_cuda_graph()))
    if len(fills) != len(memsets):
        raise RuntimeError(f"{len(memsets)} memsets became {len(fills)} nodes")
    for (node, _), fill in zip(memsets, fills, strict=True):
        _replace(whole, node, _call(driver.cuGraphKernelNodeGetParams, fill))
    return len(memsets)


def _replace(graph: Any, memset: Any, kernel: Any) -> None:
    before = _all(driver.cuGraphNodeGetDependencies, memset)
    after = _all(driver.cuGraphNodeGetDependentNodes, memset)
    node = _call(driver.cuGraphAddKernelNode, graph, before, len(before), kernel)
    try:
        if after:
            _call(
                driver.cuGraphAddDependencies, graph, [node] * len(after), after, None, len(after)
            )
        _call(driver.cuGraphDestroyNode, memset)
    except RuntimeError:
        driver.cuGraphDestroyNode(node)
        raise


def _in_order(graph: Any) -> list[Any]:
    """The nodes of a graph that is one chain."""
    nodes = _all(driver.cuGraphGetRootNodes, graph)
    while nodes:
        following = _all(driver.cuGraphNodeGetDependentNodes, nodes[-1])
        if not following:
            break
        nodes += following
    return nodes


def _area(memset: Any) -> Tensor:
    """The memory that a memset clears, which belongs to the graph."""
    name, dtype = _TYPES[memset.elementSize]

    class Area:
        __cuda_array_interface__ = {
            "shape": (memset.width,),
            "typestr": name,
            "data": (int(memset.dst), False),
            "version": 3,
        }

    return torch.as_tensor(Area(), device="cuda", dtype=dtype)


def _load_kernels() -> None:
    """A kernel's first launch loads it, which a capture may refuse."""
    for _, dtype in _TYPES.values():
        scratch = torch.empty(64, dtype=dtype, device="cuda")
        for shift in (0, 1, 2, 4, 8):  # the widest access that an address allows has its own
            scratch[shift:].fill_(0)


def _signed(value: int, size: int) -> int:
    bits = 8 * size
    value &= (1 << bits) - 1
    return value - (1 << bits) if size > 1 and value >> (bits - 1) else value


def _all(list_of: Callable[..., Any], of: Any) -> list[Any]:
    count = list_of(of)[-1]
    return list(_call(list_of, of, count)) if count else []


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The first thing that a function of the driver returns after its status."""
    status, *results = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__}: {status.name}")
    return results[0] if results else None
