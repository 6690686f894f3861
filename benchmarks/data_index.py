"""Time from opening a data set to knowing all of its samples: Convoy's manifest against NAVSIM's
walk over the cache.

Files are empty or sparse: only the index is read, on both sides.

    python benchmarks/data_index.py --samples 100000
"""

import argparse
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # NAVSIM's bar over the logs

from feature_cache import FEATURE, TARGET, navsim_dataset, sample
from report import print_report

from convoy.data.cache import Builders, logs_in, scan
from convoy.data.packing import probe
from convoy.data.shard import RECORDS_AT, Builder, Shard
from convoy.data.shard_split import damaged_shards, split_of
from convoy.data.shards import SHARDS, Manifest, load_manifest, shard_path, write_manifest

LOGS = 1192  # of navtrain


def write_index(root: Path, samples: int) -> None:
    """The manifest of a data set, and files of the right size without content."""
    layout = probe([sample(0)])
    assert layout.record_bytes is not None
    (root / SHARDS).mkdir(parents=True)
    shards = []
    for log in range(LOGS):
        tokens = tuple(f"{number:016x}" for number in range(log, samples, LOGS))
        size = RECORDS_AT + len(tokens) * layout.record_bytes
        shards.append(Shard(f"log-{log:04d}", 0, layout, tokens, size, "0" * 64))
        with shard_path(root, shards[-1].name).open("wb") as file:
            file.truncate(shards[-1].bytes)
    write_manifest(
        root, Manifest((Builder(FEATURE, "feature"), Builder(TARGET, "target")), {}, tuple(shards))
    )


def write_names(root: Path, samples: int) -> None:
    """A gzip cache of empty files."""
    for number in range(samples):
        folder = root / f"log-{number % LOGS:04d}" / f"{number:016x}"
        folder.mkdir(parents=True)
        for name in (FEATURE, TARGET):
            (folder / f"{name}.gz").touch()


def open_shards(root: Path) -> int:
    """All that rank 0 does with shards, and the way of the result to the other ranks."""
    manifest = load_manifest(root)
    logs = manifest.logs
    held_out = len(logs) // 6
    splits = [split_of(manifest, root, part) for part in (logs[held_out:], logs[:held_out])]
    assert not any(damaged_shards(split) for split in splits)
    return sum(len(split.samples) for split in pickle.loads(pickle.dumps(splits)))


def open_cache(root: Path) -> int:
    return len(scan(root, logs_in(root), Builders((FEATURE,), (TARGET,))).samples)


def open_navsim(root: Path) -> int:
    return len(navsim_dataset(root, logs_in(root)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the files are written (default: a temporary folder)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        write_index(shards, args.samples)
        write_names(cache, args.samples)
        sides: list[tuple[str, Callable[[Path], int], Path]] = [
            ("packed shards, one manifest", open_shards, shards),
            ("gzip cache, Convoy's scan", open_cache, cache),
            ("gzip cache, NAVSIM's CacheOnlyDataset", open_navsim, cache),
        ]
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in sides}
        for _ in range(args.rounds):
            for name, side, root in sides:
                started = time.perf_counter()
                assert side(root) == args.samples
                seconds[name].append(time.perf_counter() - started)
        size = (shards / "manifest.json").stat().st_size
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows: list[list[Any]] = [
        [name, value, min(seconds[name]), max(seconds[name])] for name, value in medians.items()
    ]
    record = {
        "benchmark": "data_index",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "seconds": seconds,
        "median_s": medians,
        "manifest_bytes": size,
    }
    title = (
        f"seconds to index {args.samples} samples of {LOGS} logs, "
        f"directory entries in memory ({args.rounds} rounds)"
    )
    print_report(title, ("", "median", "least", "most"), rows, record, args.json)


if __name__ == "__main__":
    main()
