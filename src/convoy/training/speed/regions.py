"""Compiles a forward pass in regions, so that gradients leave while the backward pass still runs.

A compiled function hands over all of its gradients when its backward pass ends: the ranks would
exchange them afterwards, with nothing beside it. DistributedDataParallel lets torch's DDPOptimizer
cut the graph at the buckets' borders; here the same is done without that wrapper.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import lookup_backend
from torch._dynamo.backends.distributed import DDPOptimizer

from convoy.training.speed import gradients


def compiled(forward: Callable[..., Any], compiler: str = "inductor") -> Callable[..., Any]:
    """`forward`, of which each region has about a bucket of parameters and is compiled alone."""
    cutter = DDPOptimizer(gradients.BUCKET, lookup_backend(compiler), gradients.FIRST_BUCKET)
    whole: Callable[..., Any] = torch.compile(forward, dynamic=False, backend=cutter.compile_fn)
    return whole
