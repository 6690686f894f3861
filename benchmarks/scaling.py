"""What more GPUs add: samples/s of one rank and of two, from packed shards, and their losses.

    python benchmarks/scaling.py --batches 22,44,64 --levels plain,max --compress 22,64
    python benchmarks/scaling.py --batches 64 --ranks 1,2,4 --only speeds
    python benchmarks/scaling.py --only losses
    python benchmarks/scaling.py --cpu --agent ego_status_mlp_agent --samples 4096 --batches 16

The batch is that of a rank, so two ranks take twice the samples a step. `--compress` adds, for
these batches, a side of most ranks with `speed=max` whose gradients travel as bfloat16. The losses
of one rank and of two at one global batch are compared with the built-in agent, without speed
switches: the largest relative difference of a step's loss. That is done in float64. In float32 the
rounding of a sum in another order (1e-7 in the first step) grows to 1e-2 over 30 steps, for Adam's
first steps follow the signs of gradients.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

from launch import torchrun, write_cache
from report import print_report
from training_speed import Bench

LOSS_STEPS = 30


def measure(bench: Bench, batch: int, level: str, ranks: int, *settings: str) -> dict[str, Any]:
    name = "-".join(
        [level, str(ranks), *(entry.split("=")[0].split(".")[-1] for entry in settings)]
    )
    return bench.convoy(batch, name, [f"speed={level}", f"ranks={ranks}", *settings])


def rows_of(
    bench: Bench, batch: int, level: str, counts: list[int], compress: bool
) -> list[tuple[str, dict[str, Any]]]:
    """(side, result) for each number of ranks, and the last again with compressed gradients."""
    sides: list[tuple[str, int, tuple[str, ...]]] = [(_ranks(ranks), ranks, ()) for ranks in counts]
    if compress:
        side, ranks, _ = sides[-1]
        sides.append((f"{side}, bf16 gradients", ranks, ("speed_switches.bf16_gradients=true",)))
    return [
        (f"{level}, {side}", measure(bench, batch, level, ranks, *settings))
        for side, ranks, settings in sides
    ]


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def losses(folder: Path, cpu: bool) -> float | None:
    """The largest relative difference between the losses of one rank and of two; None, with the
    reason on stderr, where a training failed."""
    try:
        difference = _difference(folder, cpu)
    except SystemExit as failed:
        print(f"losses: {failed}", file=sys.stderr)
        return None
    print(f"losses of 1 rank and of 2: {difference:.1e} apart at most", file=sys.stderr, flush=True)
    return difference


def _difference(folder: Path, cpu: bool) -> float:
    cache = write_cache(folder / "bev", 256, 8)
    logs = sorted(path.name for path in cache.iterdir())
    runs = []
    for ranks in (1, 2):
        run = folder / f"losses-{ranks}"
        settings = [
            "agent=bev_fusion_agent",
            f"cache_path={cache}",
            f"run_dir={run}",
            "speed=plain",
            "global_batch=16",
            f"train_logs=[{','.join(logs[1:])}]",
            f"val_logs=[{logs[0]}]",
            "dataloader.params.num_workers=0",
            "trainer.params.precision=64-true",
            "trainer.params.deterministic=true",
            "trainer.params.log_every_n_steps=1",
            "trainer.params.check_val_every_n_epoch=1000",
            "trainer.params.max_epochs=1000",
            f"+trainer.params.max_steps={LOSS_STEPS}",
            *(["trainer.params.accelerator=cpu"] if cpu else []),
        ]
        torchrun(ranks, ["-m", "convoy.launch.rank", *settings])
        runs.append(_losses(run))
    assert len(runs[0]) == len(runs[1]) == LOSS_STEPS
    return max(abs(one - two) / abs(one) for one, two in zip(*runs, strict=True))


def _losses(run: Path) -> list[float]:
    rows: dict[int, float] = {}
    for path in sorted(run.glob("metrics/version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get("train/loss"):
                rows[int(row["step"])] = float(row["train/loss"])
    return [rows[step] for step in sorted(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--agent", choices=("transfuser_agent", "ego_status_mlp_agent"), default="transfuser_agent"
    )
    parser.add_argument("--batches", default="22,44,64", help="of one rank")
    parser.add_argument("--levels", default="plain,max")
    parser.add_argument("--ranks", default="1,2", help="each a side, compared with the first")
    parser.add_argument("--compress", default="", help="batches that are measured so too")
    parser.add_argument("--only", choices=("losses", "speeds"))
    parser.add_argument("--samples", type=int, default=6592, help="32 logs; one is held out")
    parser.add_argument("--workers", type=int, default=8, help="reading threads of a rank")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of an epoch; 0: all")
    parser.add_argument("--compile-cache", help="kept from run to run")
    parser.add_argument("--folder", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--prepared", action="store_true", help="--folder holds the data already")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts = sorted(map(int, args.ranks.split(",")))

    rows: list[tuple[Any, ...]] = []
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        difference = None if args.only == "speeds" else losses(folder, args.cpu)
        batches = [] if args.only == "losses" else args.batches.split(",")
        bench = Bench(args, args.folder or folder)
        bench.folder.mkdir(parents=True, exist_ok=True)
        if batches:
            bench.prepare()
        for batch in map(int, batches):
            for level in args.levels.split(","):
                compress = level == "max" and str(batch) in args.compress.split(",")
                sides = rows_of(bench, batch, level, counts, compress)
                first = sides[0][1]["samples_per_s"]
                for side, result in sides:
                    rate = result["samples_per_s"]
                    row = (side, batch, f"{rate:.0f}", f"{rate / first:.2f}")
                    rows.append((*row, f"{result['memory_gib']:.1f}"))
                    results[f"{side}, batch {batch}"] = result
    record = {
        "benchmark": "scaling",
        "arguments": vars(args) | {"folder": None},
        "loss_difference": difference,
        "results": results,
    }
    if difference is not None:
        rows.append(("1 rank and 2: losses apart", "", f"{difference:.1e}", "", ""))
    columns = ("", "batch of a rank", "samples/s", f"x {_ranks(counts[0])}", "GiB")
    print_report(f"scaling, {args.agent}", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
