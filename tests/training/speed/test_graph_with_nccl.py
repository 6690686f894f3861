"""The mean over the ranks inside a CUDA graph, through NCCL and, where the GPUs can read one
another's memory, by copies: one process per GPU found here."""

import json
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from convoy.training.process_group import leave_process_group
from convoy.training.speed import gradients
from convoy.training.speed.gradients import Buckets, GradientMean
from convoy.training.speed.optimizer import make_fused
from convoy.training.speed.whole_step import EAGER_STEPS, WholeStep

SEVERAL = Buckets(4096, 4096, 4096)  # bytes
STEPS = EAGER_STEPS + 12


def _rank(rank: int, world_size: int, port: int) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        device_id=device,
    )
    gradients.LARGE = 8192  # bytes: the middle weights are reduced where they lie
    generator = torch.Generator().manual_seed(rank)
    data = [torch.randn(5, 64, generator=generator).to(device) for _ in range(STEPS)]
    plain, reasons = _train(data, world_size, graph=False)
    graph, reasons = _train(data, world_size, graph=True)
    others = (other for other in range(world_size) if other != rank)
    peers = all(torch.cuda.can_device_access_peer(rank, other) for other in others)
    copies, more = _train(data, world_size, graph=True, copies=peers)
    reasons += more
    alone, _ = _train(_everybodys(data, world_size), None, graph=False)
    print(
        json.dumps(
            {"plain": plain, "graph": graph, "copies": copies, "alone": alone, "reasons": reasons}
        )
    )
    leave_process_group()


def _everybodys(data: list[torch.Tensor], world_size: int) -> list[torch.Tensor]:
    """Each step's batches of all ranks as one batch."""
    parts = [torch.empty(world_size * len(batch), 64, device=batch.device) for batch in data]
    for part, batch in zip(parts, data, strict=True):
        dist.all_gather_into_tensor(part, batch)
    return parts


def _train(
    data: list[torch.Tensor], world_size: int | None, graph: bool, copies: bool = False
) -> tuple[list[float], list[str]]:
    """Sums of the trained parameters, and why there is no graph; `world_size` None: no mean."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64) for _ in range(4)]
    model = torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(64, 3)).cuda()
    # With its decay the size of a gradient matters, not its direction alone.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)
    make_fused(optimizer, True)
    reasons: list[str] = []

    def loss(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model(batch).square().mean()}

    parameters = list(model.parameters())
    mean = None
    if world_size is not None:
        mean = GradientMean(parameters, world_size, sizes=SEVERAL, copies=copies)
    step = WholeStep(
        loss,
        loss,
        optimizer,
        parameters,
        mean=mean,
        graph=graph,
        agent=model,
        give_up=reasons.append,
    )
    for batch in data:
        step(batch)
    return [entry.sum().item() for entry in parameters], reasons


def test_every_rank_takes_the_same_steps_with_and_without_the_graph(cuda):
    world_size = torch.cuda.device_count()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world_size), str(port)],
            stdout=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    outputs = [
        json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in ranks
    ]
    for output in outputs:
        assert output["reasons"] == []
        assert output["graph"] == pytest.approx(output["plain"], rel=1e-4, abs=1e-4)
        assert output["graph"] == pytest.approx(output["alone"], rel=1e-2, abs=1e-2)
        assert output["graph"] == outputs[0]["graph"]
        assert output["copies"] == pytest.approx(output["graph"], rel=1e-5, abs=1e-5)
        assert output["copies"] == outputs[0]["copies"]


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:]))
