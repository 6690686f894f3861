"""Processor time per training step of `convoy train` and of a bare PyTorch loop with the same
agent, data and loader: one rank, one thread, in turn.

python benchmarks/processor_time.py

framework_overhead.py measures what a user sees, samples/s; this one needs no quiet machine, since
others' work takes a process's turns but not its processor time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from launch import write_cache
from report import print_report
from timed import add_callback
from torch.utils.data import DataLoader

FIRST, LAST = 10, 70  # steps between which the processor's time is taken
BATCH = 8


class Clock(pl.Callback):
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.global_step == FIRST:
            self.began = time.process_time()
        elif trainer.global_step == LAST:
            tell(time.process_time() - self.began)


def tell(seconds: float) -> None:
    print(json.dumps({"ms_per_step": seconds / (LAST - FIRST) * 1e3}), flush=True)


def bare_loop(cache: Path) -> None:
    from convoy.agents.bev_fusion import BevFusionAgent
    from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, logs_in, scan
    from convoy.data.order import TrainingOrder

    torch.manual_seed(0)
    agent = BevFusionAgent()
    optimizer = agent.get_optimizers()
    if isinstance(optimizer, dict):
        optimizer = optimizer["optimizer"]
    builders = Builders.of(agent)  # type: ignore[arg-type]
    split = CacheSplit(cache, scan(cache, logs_in(cache)[1:], builders).samples)
    data = CacheDataset(split, builders)
    order = TrainingOrder(len(data), BATCH, 1, 0, seed=0)
    loader = DataLoader(data, batch_size=BATCH, sampler=order, collate_fn=collate)
    agent.train()
    step = 0
    for epoch in range(LAST):
        order.set_epoch(epoch)
        for features, targets in loader:
            optimizer.zero_grad()
            agent.compute_loss(features, targets, agent(features)).backward()
            optimizer.step()
            step += 1
            if step == FIRST:
                began = time.process_time()
            if step == LAST:
                tell(time.process_time() - began)
                return


def convoy_train(cache: Path) -> None:
    from convoy.launch import rank

    add_callback(Clock())
    logs = sorted(path.name for path in cache.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        rank.main(
            [
                "agent=bev_fusion_agent",
                f"cache_path={cache}",
                f"run_dir={folder}/run",
                f"global_batch={BATCH}",
                f"train_logs=[{','.join(logs[1:])}]",
                f"val_logs=[{logs[0]}]",
                "dataloader.params.num_workers=0",
                "trainer.params.accelerator=cpu",
                "trainer.params.check_val_every_n_epoch=1000000",
                f"+trainer.params.max_steps={LAST}",
                "trainer.params.max_epochs=1000000",
            ]
        )


def measure(side: str, cache: Path) -> float:
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--side", side, "--cache", str(cache)]
    done = subprocess.run(words, env=environment, text=True, capture_output=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"ms_per_step"')]
    if not lines:
        sys.exit(f"{side} failed:\n{done.stdout}{done.stderr}")
    return float(json.loads(lines[-1])["ms_per_step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("bare", "convoy"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        (bare_loop if args.side == "bare" else convoy_train)(args.cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder) / "cache", 128, 4)
        pairs = [(measure("bare", cache), measure("convoy", cache)) for _ in range(args.rounds)]
    ratios = [theirs / ours for theirs, ours in pairs]
    rows = [
        (f"round {number}", *pair, ratio)
        for number, (pair, ratio) in enumerate(zip(pairs, ratios, strict=True), 1)
    ]
    middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
    rows.append(("median", *middle, statistics.median(ratios)))
    record = {
        "benchmark": "processor_time",
        "arguments": {"rounds": args.rounds},
        "load_average": os.getloadavg(),
        "bare_ms_per_step": [pair[0] for pair in pairs],
        "convoy_ms_per_step": [pair[1] for pair in pairs],
        "ratio_median": statistics.median(ratios),
    }
    title = "ms of processor time per step"
    print_report(title, ("", "bare loop", "convoy train", "ratio"), rows, record, args.json)


if __name__ == "__main__":
    main()
