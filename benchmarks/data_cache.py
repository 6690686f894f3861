"""Samples/s of NAVSIM's gzip cache: NAVSIM's own CacheOnlyDataset in a DataLoader beside Convoy's,
with as many workers, for samples of a small agent (EgoStatusMLP) and of TransFuser's size.

    python benchmarks/data_cache.py --workers 0,2 --rounds 5
    python benchmarks/data_cache.py --workers 4,14 --samples 65536,4096

Convoy looks at each pickle before it reads it. The sides take turns; the medians of the rounds are
compared.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # NAVSIM's bar over the logs

import ego_cache
import feature_cache
from report import print_report
from torch.utils.data import DataLoader, RandomSampler, default_collate

from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, logs_in, scan

BATCH = 64
LOGS = 16
EGO = ("EgoStatusMLP", ego_cache.write_cache, "ego_status_feature", "trajectory_target")
TRANSFUSER = (
    "TransFuser",
    feature_cache.write_cache,
    feature_cache.FEATURE,
    feature_cache.TARGET,
)


def navsim(cache: Path, builders: Builders) -> Any:
    named = feature_cache.NamedBuilder
    return feature_cache.navsim_module().CacheOnlyDataset(
        str(cache), [named(builders.features[0])], [named(builders.targets[0])], logs_in(cache)
    )


def convoy(cache: Path, builders: Builders) -> CacheDataset:
    samples = scan(cache, logs_in(cache), builders).samples
    return CacheDataset(CacheSplit(cache, samples), builders)


def rate(data: Any, workers: int) -> float:
    """Samples/s of one epoch, without its first batch."""
    loader = DataLoader(
        data,
        BATCH,
        sampler=RandomSampler(data),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        collate_fn=collate if isinstance(data, CacheDataset) else default_collate,
    )
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    read = sum(len(next(iter(batch[0].values()))) for batch in batches)
    return read / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", default="16384,1024", help="of either agent")
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the data (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    rows: list[tuple[Any, ...]] = []
    results: dict[str, dict[str, Any]] = {}
    for agent, samples in zip((EGO, TRANSFUSER), map(int, args.samples.split(",")), strict=True):
        name, write, feature, target = agent
        builders = Builders((feature,), (target,))
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            cache = Path(folder)
            write(cache, samples, LOGS)
            sides = {"NAVSIM": navsim(cache, builders), "Convoy": convoy(cache, builders)}
            for workers in map(int, args.workers.split(",")):
                rates: dict[str, list[float]] = defaultdict(list)
                for _ in range(args.rounds):
                    for side, data in sides.items():
                        rates[side].append(rate(data, workers))
                theirs, ours = median(rates["NAVSIM"]), median(rates["Convoy"])
                rows.append((name, workers, f"{theirs:.0f}", f"{ours:.0f}", f"{ours / theirs:.2f}"))
                results[f"{name}, {workers} workers"] = dict(rates)
    record = {
        "benchmark": "data_cache",
        "arguments": {key: str(value) for key, value in vars(args).items() if key != "folder"},
        "samples_per_s": results,
    }
    columns = ("samples of", "workers", "NAVSIM", "Convoy", "x NAVSIM")
    print_report(f"gzip cache, samples/s, batch {BATCH}", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
