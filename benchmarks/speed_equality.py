"""Whether `speed=max` learns what `speed=plain` does: 200 steps from one seed on each side.

    python benchmarks/speed_equality.py SHARDS WEIGHTS --steps 200 --batch 64

The distance of two runs is the root mean square of the difference of their losses over the reports
(means over ten steps). max and plain of one seed must not be farther apart than plain runs of
different seeds are, all in bfloat16. The runs share the GPU, for nothing here is timed.
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


def start(args: argparse.Namespace, folder: Path, level: str, seed: int) -> subprocess.Popen[bytes]:
    logs = sorted(load_manifest(args.shards).logs)
    run = folder / f"{level}-{seed}"
    command = [
        sys.executable,
        "-m",
        "convoy.launch.rank",
        "agent=transfuser_agent",
        f'+agent.config.image_architecture="local-dir:{args.weights}"',
        f"cache_path={args.shards}",
        f"run_dir={run}",
        f"speed={level}",
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
    log = (folder / f"{level}-{seed}.log").open("wb")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


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
    parser.add_argument("--seeds", type=int, default=3, help="plain runs")
    parser.add_argument("--compile-cache")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides = [("plain", seed) for seed in range(args.seeds)] + [("max", 0)]
        processes = [start(args, folder, *side) for side in sides]
        for (level, seed), process in zip(sides, processes, strict=True):
            if process.wait():
                text = (folder / f"{level}-{seed}.log").read_text()
                sys.exit(f"{level}, seed {seed}, failed:\n{text[-3000:]}")
        curves = {side: losses(folder / f"{side[0]}-{side[1]}") for side in sides}
    plain = [curves["plain", seed] for seed in range(args.seeds)]
    between = [distance(one, other) for one, other in itertools.combinations(plain, 2)]
    ours = distance(curves["max", 0], plain[0])
    rows = [
        ("max and plain, seed 0", ours),
        ("plain, two seeds: least", min(between)),
        ("plain, two seeds: most", max(between)),
    ]
    last = [("last report: max", curves["max", 0][-1])]
    last += [(f"last report: plain, seed {seed}", plain[seed][-1]) for seed in range(args.seeds)]
    record = {
        "benchmark": "speed_equality",
        "steps": args.steps,
        "batch": args.batch,
        "max_to_plain": ours,
        "plain_to_plain": between,
        "losses": {f"{level} {seed}": curve for (level, seed), curve in curves.items()},
    }
    print_report("distance of losses", ("", "loss"), rows + last, record, args.json)
    if ours > max(between):
        sys.exit("max is farther from plain than plain runs of different seeds are")


if __name__ == "__main__":
    main()
