"""Samples/s of `convoy train` against a bare PyTorch DDP loop with the same agent, data and loader,
in turn.

python benchmarks/framework_overhead.py --processes 2            # CPU
python benchmarks/framework_overhead.py --processes 1 --accelerator gpu --workers 14 \\
    --global-batch 64 --steps 200
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from launch import Size, bare, convoy, write_cache
from report import print_report


def measure(size: Size, bare_first: bool) -> tuple[float, float]:
    """(bare, convoy) samples/s; which goes first alternates, so that a drift of the machine's speed
    cancels out."""
    if bare_first:
        theirs = bare(size).samples_per_s
        return theirs, convoy(size).samples_per_s
    ours = convoy(size).samples_per_s
    return bare(size).samples_per_s, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="loader processes per rank")
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each run")
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument(
        "--rounds", type=int, default=8, help="pairs of runs; the median ratio counts"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder) / "cache", args.samples, 8)
        size = Size(
            cache, args.global_batch, args.steps, args.processes, args.workers, args.accelerator
        )
        pairs = [measure(size, bare_first=number % 2 == 0) for number in range(args.rounds)]
    ratios = [ours / theirs for theirs, ours in pairs]
    rows = [
        (f"round {number}", *pair, ratio)
        for number, (pair, ratio) in enumerate(zip(pairs, ratios, strict=True), 1)
    ]
    rows.append(
        (
            "median",
            *(statistics.median(side) for side in zip(*pairs, strict=True)),
            statistics.median(ratios),
        )
    )
    record = {
        "benchmark": "framework_overhead",
        "arguments": vars(args),
        "bare_samples_per_s": [pair[0] for pair in pairs],
        "convoy_samples_per_s": [pair[1] for pair in pairs],
        "ratio_median": statistics.median(ratios),
    }
    title = f"samples/s, {args.processes} process(es), {args.accelerator}"
    print_report(title, ("", "bare DDP", "convoy train", "ratio"), rows, record, args.json)


if __name__ == "__main__":
    main()
