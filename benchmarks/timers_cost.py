"""What Convoy's timers add to a training step: Lightning's own loop in short windows, in turn with
the timers and with Lightning's empty profiler, in one process.

python benchmarks/timers_cost.py                       # CPU
python benchmarks/timers_cost.py --accelerator gpu     # CUDA events included

The step is as short as a step can be, so that little hides the difference; `--step-ms` is a real
step that it is compared with (EgoStatusMLP on a GPU takes 1.5 to 4 ms).
"""

import argparse
import statistics
import time
from typing import Any

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import PassThroughProfiler
from report import print_report
from torch.utils.data import DataLoader, Dataset

from convoy.training.timers import StepTimers

WINDOW = 64  # steps


class Samples(Dataset[torch.Tensor]):
    def __init__(self, count: int) -> None:
        self._count, self._sample = count, torch.ones(8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._sample


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Turns(pl.Callback):
    """Changes the Trainer's profiler after each window, and times the windows."""

    def __init__(self, sides: dict[str, Any]) -> None:
        self.sides, self.seconds = sides, {name: list[float]() for name in sides}
        self._order = list(sides)
        self._began: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.global_step % WINDOW:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._began is not None:
            self.seconds[self._order[0]].append((now - self._began) / WINDOW)
        self._order = self._order[::-1]
        trainer.profiler = self.sides[self._order[0]]
        self._began = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--windows", type=int, default=200, help=f"of {WINDOW} steps")
    parser.add_argument("--step-ms", type=float, default=2.0, help="a real step")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    timers = StepTimers(on_gpu=args.accelerator == "gpu")
    turns = Turns({"Lightning's empty profiler": PassThroughProfiler(), "Convoy's timers": timers})
    trainer = pl.Trainer(
        max_steps=args.windows * WINDOW,
        accelerator=args.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[turns],
        profiler=PassThroughProfiler(),
    )
    trainer.fit(Module(), DataLoader(Samples(args.windows * WINDOW)))
    median = {name: statistics.median(values[2:]) for name, values in turns.seconds.items()}
    plain, timed = median.values()
    added = statistics.median(
        ours - theirs for theirs, ours in zip(*turns.seconds.values(), strict=False)
    )
    share = added * 1000 / args.step_ms
    rows = [(name, seconds * 1e6) for name, seconds in median.items()]
    rows += [("added by the timers", added * 1e6)]
    record = {
        "benchmark": "timers_cost",
        "arguments": vars(args),
        "plain_us_per_step": plain * 1e6,
        "timed_us_per_step": timed * 1e6,
        "added_us_per_step": added * 1e6,
        "share_of_a_real_step": share,
    }
    title = f"us per step, {args.accelerator}; added: {share:.2%} of {args.step_ms:g} ms"
    print_report(title, ("", "us per step"), rows, record, args.json)


if __name__ == "__main__":
    main()
