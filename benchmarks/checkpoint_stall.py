"""What checkpoints and the agreement to stop cost a training, beside going without.

    python benchmarks/checkpoint_stall.py [--folder DIR] [--parameters 56] [--rounds 3]

A model of so many million parameters with Adam trains on the GPU, or on the CPU where there is
none. Between steps its state (weights and both moments) is saved, first the plain way (torch.save
and fsync, the training waits), then in the background. Each side's figure is the time by which a
checkpoint makes the training longer: what holds the training thread, and how much slower the steps
beside the writing are. Then two processes agree about a stop, and the same steps run without.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from convoy.run.stop_request import StopRequest
from convoy.topology import Topology
from convoy.training.checkpoint import CheckpointWriter
from convoy.training.process_group import HostGroup
from convoy.training.stopping import Agreement

INTERVAL = 30.0  # seconds: checkpoint.every_minutes=0.5, the default
AGREED_STEP = 0.0044  # seconds: a step of EgoStatusMLP on one GPU


class Training:
    """Steps of a plain multilayer network; the state is that of Lightning's checkpoints."""

    def __init__(self, millions: float, device: torch.device) -> None:
        width = 1024
        layers = [torch.nn.Linear(width, width) for _ in range(round(millions * 1e6 / width**2))]
        self.model = torch.nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self.batch = torch.randn(256 if device.type == "cuda" else 4, width, device=device)
        self.device = device
        for _ in range(3):
            self.step()

    def step(self) -> float:
        """Seconds of one step."""
        begun = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()
        self.wait()
        return time.perf_counter() - begun

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def state(self) -> dict[str, Any]:
        return {
            "state_dict": self.model.state_dict(),
            "optimizer_states": [self.optimizer.state_dict()],
        }


def plain(training: Training, path: Path) -> float:
    begun = time.perf_counter()
    with path.open("wb") as file:
        torch.save(training.state(), file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begun


def mean_step(training: Training) -> float:
    """Seconds, over two seconds: steps beside the writing are added up, slow ones too."""
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 2:
        training.step()
        count += 1
    return (time.perf_counter() - begun) / count


def background(training: Training, path: Path, writer: CheckpointWriter) -> dict[str, float]:
    """Seconds that the thread was held, that the writing took, and that steps beside it lost."""
    usual = mean_step(training)
    begun = time.perf_counter()
    writer.save_checkpoint(training.state(), path)
    held = time.perf_counter() - begun
    beside = []
    while writer.busy:
        beside.append(training.step())
    written = time.perf_counter() - begun
    lost = max(0.0, sum(beside) - usual * len(beside))
    if writer.failure or writer.refusal:
        raise SystemExit(f"not written: {writer.failure or writer.refusal}")
    return {"held": held, "slower steps": lost, "written after": written}


def steps(rank: int, port: int, count: int, answer: Any) -> None:
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    topology = Topology(rank=rank, local_rank=rank, world_size=2, local_world_size=2)
    host_group = HostGroup(topology, torch.distributed.group.WORLD)
    agreement = Agreement(host_group, StopRequest())
    gradient = torch.zeros(1000)
    spent = 0.0
    for _ in range(count):
        time.sleep(AGREED_STEP)
        torch.distributed.all_reduce(gradient)  # as every training does: the ranks keep step
        begun = time.perf_counter()
        agreement.after_step(lambda: False, lambda: False)
        spent += time.perf_counter() - begun
    torch.distributed.barrier()
    if rank == 0:
        answer.put(spent / count)


def in_two(target: Callable[..., None], *arguments: Any) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    port = 61000 + os.getpid() % 4000
    both = [context.Process(target=target, args=(r, port, *arguments, answer)) for r in range(2)]
    for process in both:
        process.start()
    found = float(answer.get(timeout=300))
    for process in both:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--parameters", type=float, default=56, help="millions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of the agreement's side")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "checkpoint.ckpt"
        training = Training(args.parameters, device)
        waited = [plain(training, path) for _ in range(args.rounds)]
        size = path.stat().st_size / 1e6
        writer = CheckpointWriter()
        first, *rest = [background(training, path, writer) for _ in range(args.rounds + 1)]
        writer.teardown()
    held = statistics.median(one["held"] + one["slower steps"] for one in rest)
    alone = statistics.median(waited)
    agreement = in_two(steps, args.steps)
    print(f"{name}, torch {torch.__version__}, {args.parameters:g} M parameters, {size:.0f} MB")
    print(f"  checkpoint, the training waits  {alone:8.3f} s  {alone / INTERVAL:7.2%} of the time")
    print(f"  checkpoint in the background    {held:8.3f} s  {held / INTERVAL:7.2%} of the time")
    thread = statistics.median(one["held"] for one in rest)
    print(
        f"    of it the thread is held      {thread:8.3f} s  (the first one {first['held']:.3f} s)"
    )
    share = agreement / AGREED_STEP
    print(f"  agreement to stop, per step     {agreement * 1e6:8.1f} us {share:7.2%} of 4.4 ms")
    result = {
        "device": name,
        "torch": torch.__version__,
        "megabytes": round(size),
        "plain_seconds": waited,
        "background": rest,
        "background_first": first,
        "share_plain": alone / INTERVAL,
        "share_background": held / INTERVAL,
        "agreement_seconds_per_step": agreement,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
