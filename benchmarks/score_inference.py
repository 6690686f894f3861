"""TransFuser's trajectories from packed shards, as `convoy score --shards` computes them.

    python benchmarks/score_inference.py --samples 8192
    python benchmarks/score_inference.py --cpu --samples 64 --batches 8      # a try

Rates are samples per second from the first read to the last pose on the host. Beside them stand the
reading alone, the forward pass alone (on one batch that stays on the device), and NAVSIM's own way,
`compute_trajectory` less its builders: one scene at a time on the CPU. Data and weights are random,
of the size of real ones.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from feature_cache import write_cache
from navsim_script import prepare_imports
from report import print_report

from convoy.config import compose
from convoy.data.shard_split import ShardSplit, split_of
from convoy.data.shards import load_manifest
from convoy.navsim import tree
from convoy.navsim.agents import build_agent
from convoy.navsim.weights import write_random_backbone
from convoy.scoring.inference import BatchPredictor, feature_batches

LOGS = 32
SINGLE = 8  # scenes that are timed one at a time


def build(folder: Path) -> Any:
    """NAVSIM's TransFuser with random weights."""
    weights = write_random_backbone("resnet34", folder / "weights")
    backbone = f'+agent.config.image_architecture="local-dir:{weights}"'
    words = ["agent=transfuser_agent", backbone, "cache_path=."]
    return build_agent(compose(words, tree.config_directory()).agent)


def pack(folder: Path, samples: int) -> Path:
    write_cache(folder / "cache", samples, LOGS)
    command = ["prepare", str(folder / "shards"), "--from-cache", str(folder / "cache")]
    subprocess.run(
        [sys.executable, "-m", "convoy.commands", *command, "--no-verify"],
        check=True,
        stdout=sys.stderr,
    )
    return folder / "shards"


def rate(work: Callable[[], int], rounds: int) -> float:
    """The best round's samples per second; the first one, which fills caches, does not count."""
    best = 0.0
    for number in range(rounds + 1):
        started = time.perf_counter()
        done = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:
            best = max(best, done / (time.perf_counter() - started))
    return best


def one_at_a_time(agent: Any, features: Mapping[str, Any]) -> float:
    """Samples per second of NAVSIM's loop on the CPU."""
    agent.to("cpu").eval()
    scenes = [{n: v[i : i + 1].float().cpu() for n, v in features.items()} for i in range(SINGLE)]
    with torch.no_grad():
        agent.forward(scenes[0])
        started = time.perf_counter()
        for scene in scenes:
            agent.forward(scene)["trajectory"].squeeze(0).numpy()
    return SINGLE / (time.perf_counter() - started)


def measure(
    agent: Any, split: ShardSplit, device: torch.device, size: int, rounds: int
) -> list[dict[str, Any]]:
    """Rates with batches of `size`, for each precision."""
    threads = len(os.sched_getaffinity(0))

    def batches() -> Any:
        return feature_batches(split, agent, split.samples, device, size, threads)

    def read() -> int:
        return sum(len(batch["status_feature"]) for batch in batches())

    def whole() -> int:
        return sum(map(len, predictor.poses(batches())))

    def resident() -> int:
        return sum(map(len, predictor.poses(repeat(first, count))))

    reading = rate(read, rounds)
    first = next(iter(batches()))
    count = max(4, len(split.samples) // size // 4)
    rows = []
    for precision in ("32", "bf16"):
        predictor = BatchPredictor(agent, device, precision)
        row: dict[str, Any] = {"batch": size, "precision": precision}
        row["from_shards"], row["forward_alone"] = rate(whole, rounds), rate(resident, rounds)
        rows.append(row | {"reading_alone": reading})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--batches", default="64,128,256", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps the data for another call")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    prepare_imports()
    device = torch.device("cpu") if args.cpu else torch.device("cuda", 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        shards = folder / "shards"
        if not (shards / "manifest.json").is_file():
            pack(folder, args.samples)
        agent = build(folder)
        manifest = load_manifest(shards)
        split = split_of(manifest, shards, manifest.logs)
        sizes = map(int, args.batches.split(","))
        record = [row for n in sizes for row in measure(agent, split, device, n, args.rounds)]
        features = next(iter(feature_batches(split, agent, split.samples, device, SINGLE, 1)))
        navsim = one_at_a_time(agent, features)
    rows = [*(list(row.values()) for row in record), [1, "NAVSIM, CPU", navsim, "", ""]]
    columns = ("batch", "precision", "samples/s from shards", "forward alone", "reading alone")
    title = f"TransFuser's trajectories, {len(split.samples)} samples, {device.type}"
    print_report(title, columns, rows, {"rows": record, "navsim_cpu": navsim}, args.json)


if __name__ == "__main__":
    main()
