"""The other side of the comparisons: a training loop in plain PyTorch DDP, with Convoy's agent,
data and loader.

Run by torchrun. Rank 0 prints one JSON line: the time (Unix) of its first optimiser step, and
samples/s over all windows of `--window` steps but the first, as Convoy reports it.
"""

import argparse
import json
import time
from pathlib import Path

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning  # noqa: F401  # both sides pay for importing it
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from convoy.agents.bev_fusion import BevFusionAgent
from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, logs_in, scan
from convoy.data.order import TrainingOrder
from convoy.training.process_group import leave_process_group


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("--global-batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--val-logs", nargs="+", default=[])
    args = parser.parse_args()

    gpu = args.accelerator != "cpu"
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if gpu else torch.device("cpu")
    torch.manual_seed(0)
    agent = BevFusionAgent().to(device)
    model = (
        DistributedDataParallel(agent, device_ids=[device] if gpu else None)
        if world_size > 1
        else agent
    )
    optimizer = agent.get_optimizers()
    if isinstance(optimizer, dict):
        optimizer = optimizer["optimizer"]

    builders = Builders.of(agent)  # type: ignore[arg-type]
    logs = [log for log in logs_in(args.cache) if log not in args.val_logs]
    data = CacheDataset(CacheSplit(args.cache, scan(args.cache, logs, builders).samples), builders)
    order = TrainingOrder(len(data), args.global_batch, world_size, rank, seed=0)
    loader = DataLoader(
        data,
        batch_size=args.global_batch // world_size,
        sampler=order,
        collate_fn=collate,
        num_workers=args.workers,
        pin_memory=gpu,
        persistent_workers=args.workers > 0,
        prefetch_factor=2 if args.workers else None,
    )
    first_step, step, windows, epoch = None, 0, [], 0
    agent.train()
    while step < args.steps:
        order.set_epoch(epoch)
        since = (time.monotonic(), step)
        for features, targets in loader:
            features = {
                name: value.to(device, non_blocking=True) for name, value in features.items()
            }
            targets = {name: value.to(device, non_blocking=True) for name, value in targets.items()}
            optimizer.zero_grad()
            loss = agent.compute_loss(features, targets, model(features))
            loss.backward()
            optimizer.step()
            step += 1
            if first_step is None:
                loss.item()
                first_step = time.time()
            if step % args.window == 0:
                loss.item()
                now = time.monotonic()
                windows.append((now - since[0], (step - since[1]) * args.global_batch))
                since = (now, step)
            if step == args.steps:
                break
        epoch += 1
    if rank == 0:
        seconds, samples = (sum(column) for column in zip(*(windows[1:] or windows), strict=True))
        print(json.dumps({"first_step": first_step, "samples_per_s": samples / seconds}))
    leave_process_group()


if __name__ == "__main__":
    main()
