"""Whether `speed=max` learns what `speed=plain` does: 200 steps from one seed on each side.

    python benchmarks/speed_equality.py SHARDS WEIGHTS --steps 200 --batch 64
    python benchmarks/speed_equality.py SHARDS WEIGHTS --compression        # two GPUs

The distance of two runs is the root mean square of the difference of their losses over the reports
(means over ten steps). max and plain of one seed must not be farther apart than plain runs of
different seeds are, all in bfloat16. `--compression` compares two ranks with gradients that travel
as bfloat16 with two ranks without, both with `speed=max`, in the same way. The runs share the GPUs,
for nothing here is timed.
"""

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from report import print_report

from convoy.data.shards import load_manifest


def start(args: argparse.Namespace, folder: Path, side: str, seed: int) -> subprocess.Popen[bytes]:
    logs = sorted(load_manifest(args.shards).logs)
    ranks = 2 if args.compression else 1
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    level, _, compressed = side.partition(", ")
    command = [
        sys.executable,
        *(launcher if ranks > 1 else []),
        "-m",
        "convoy.launch.rank",
        "agent=transfuser_agent",
        f'+agent.config.image_architecture="local-dir:{args.weights}"',
        f"cache_path={args.shards}",
        f"run_dir={folder / name_of(side, seed)}",
        f"speed={level}",
        *(["speed_switches.bf16_gradients=true"] if compressed else []),
        "trainer.params.precision=bf16-mixed",
        f"seed={seed}",
        f"train_logs=[{','.join(logs[1:])}]",
        f"val_logs=[{logs[0]}]",
        "trainer.params.max_epochs=99",
        f"+trainer.params.max_steps={args.steps}",
        "trainer.params.check_val_every_n_epoch=99",
        f"dataloader.params.batch_size={args.batch}",
        *([f"compile_cache={args.compile_cache}"] if args.compile_cache else []),
    ]
    log = (folder / f"{name_of(side, seed)}.log").open("wb")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def name_of(side: str, seed: int) -> str:
    return f"{side.replace(', ', '-').replace(' ', '-')}-{seed}"


def losses(run: Path) -> list[float]:
    """Of each report, from the run's CSV."""
    rows: dict[int, float] = {}
    for path in sorted(run.glob("metrics/version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get("train/loss"):
                rows[int(row["step"])] = float(row["train/loss"])
    return [rows[step] for step in sorted(rows) if step % 10 == 0]


def distance(one: list[float], other: list[float]) -> float:
    return statistics.fmean((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("weights", type=Path, help="folder of a timm backbone")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3, help="runs of the slower side")
    parser.add_argument("--compression", action="store_true")
    parser.add_argument("--compile-cache")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    plain, fast = ("max", "max, bf16 gradients") if args.compression else ("plain", "max")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides = [(plain, seed) for seed in range(args.seeds)] + [(fast, 0)]
        processes = [start(args, folder, *side) for side in sides]
        for side, process in zip(sides, processes, strict=True):
            if process.wait():
                text = (folder / f"{name_of(*side)}.log").read_text()
                sys.exit(f"{side[0]}, seed {side[1]}, failed:\n{text[-3000:]}")
        curves = {side: losses(folder / name_of(*side)) for side in sides}
    slower = [curves[plain, seed] for seed in range(args.seeds)]
    between = [distance(one, other) for one, other in itertools.combinations(slower, 2)]
    ours = distance(curves[fast, 0], slower[0])
    rows = [
        (f"{fast} and {plain}, seed 0", ours),
        (f"{plain}, two seeds: least", min(between)),
        (f"{plain}, two seeds: most", max(between)),
    ]
    last = [(f"last report: {fast}", curves[fast, 0][-1])]
    last += [(f"last report: {plain}, seed {seed}", slower[seed][-1]) for seed in range(args.seeds)]
    record = {
        "benchmark": "speed_equality",
        "steps": args.steps,
        "batch": args.batch,
        "ranks": 2 if args.compression else 1,
        "sides": [plain, fast],
        "apart": ours,
        "seeds_apart": between,
        "losses": {f"{side} {seed}": curve for (side, seed), curve in curves.items()},
    }
    print_report("distance of losses", ("", "loss"), rows + last, record, args.json)
    if ours > max(between):
        sys.exit(f"{fast} is farther from {plain} than {plain} runs of different seeds are")


if __name__ == "__main__":
    main()
