"""Samples nested as those of GTRS (lists of pictures, numpy arrays, a string) from shards, against
NAVSIM's gzip cache: reading batches for the training, and writing what the builders gave.

    python benchmarks/data_nested.py --samples 48 --workers 2 --threads 2

NAVSIM's side is its own CacheOnlyDataset in a DataLoader with its own default_collate, and its own
dump_feature_target_to_pickle. Batches from shards are packed, as they cross to a GPU; the row
"decoded on the host" is what a training on the CPU gets.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # NAVSIM's bar over the logs

import numpy as np
import torch
from feature_cache import FEATURE, TARGET, navsim_dataset, navsim_module
from report import print_report
from torch.utils.data import DataLoader

from convoy.data.cache import Builders
from convoy.data.packed_batch import PackedBatch
from convoy.data.prepare.inputs import CacheInput
from convoy.data.prepare.run import Options, prepare
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shard_writer import ShardWriter
from convoy.topology import Task

BUILDERS = Builders((FEATURE,), (TARGET,))
BATCH = 8
LOGS = 2
DISTINCT = 4  # samples; the others are copies of these under names of their own
NOISE = 7.0  # as in feature_cache: pictures compress as real ones do


def sample(number: int) -> dict[str, dict[str, Any]]:
    """Names, shapes, dtypes and nesting of GTRS's builders with two frames."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0:512, 0:2048] / np.array([512, 2048])[:, None, None]

    def picture() -> torch.Tensor:
        waves = [
            110 + 60 * np.sin(6 * (rows * a + columns * b)) for a, b in rng.uniform(-1, 1, (3, 2))
        ]
        noisy = np.clip(np.stack(waves) + rng.normal(0, NOISE, (3, 512, 2048)), 0, 255)
        return torch.from_numpy(noisy.astype(np.uint8)).float().div(255)

    classes = np.kron(rng.integers(0, 7, (16, 32)), np.ones((8, 8))).astype(np.float32)
    return {
        FEATURE: {
            "camera_feature": [picture(), picture()],
            "camera_feature_back": [picture(), picture()],
            "status_feature": [torch.from_numpy(rng.normal(size=8).astype(np.float32))],
            "ego_pose": rng.normal(size=3),
            "ego_velocity": rng.normal(size=2).astype(np.float32),
            "ego_acceleration": rng.normal(size=2).astype(np.float32),
            "token": f"{number:016x}",
        },
        TARGET: {
            "trajectory": torch.from_numpy(rng.normal(size=(8, 3))),
            "agent_states": torch.from_numpy(rng.normal(size=(30, 5)).astype(np.float32)),
            "agent_labels": torch.from_numpy(rng.random(30) < 0.4),
            "bev_semantic_map": torch.from_numpy(classes),
            "interpolated_traj": torch.from_numpy(rng.normal(size=(40, 3))),
        },
    }


def rate(batches: Iterable[Any], size: Callable[[Any], int]) -> float:
    """Samples/s after the first batch."""
    iterator = iter(batches)
    next(iterator)
    started = time.perf_counter()
    done = sum(size(batch) for batch in iterator)
    return done / (time.perf_counter() - started)


def write_rates(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Samples/s of one process that writes what builders gave it: NAVSIM's files, and a shard."""
    dump = navsim_module().dump_feature_target_to_pickle
    given = [sample(number) for number in range(DISTINCT)]
    rates: dict[str, list[float]] = {"NAVSIM": [], "Convoy": []}
    for _ in range(rounds):
        started = time.perf_counter()
        for number, values in enumerate(given):
            (folder / f"gzip/{number}").mkdir(parents=True)
            for builder, content in values.items():
                dump(folder / f"gzip/{number}/{builder}.gz", content)
        rates["NAVSIM"].append(len(given) / (time.perf_counter() - started))
        started = time.perf_counter()
        with ShardWriter(folder / "shards", "log", 0, None) as writer:
            for number, values in enumerate(given):
                writer.add(f"{number}", values)
            writer.finish({})
        rates["Convoy"].append(len(given) / (time.perf_counter() - started))
        shutil.rmtree(folder / "gzip")
        shutil.rmtree(folder / "shards")
    return rates


def write_cache(root: Path, samples: int) -> int:
    """NAVSIM's cache of `samples` samples; returns the bytes of all."""
    dump = navsim_module().dump_feature_target_to_pickle
    written = []
    for number in range(samples):
        folder = root / f"log-{number % LOGS}" / f"{number:016x}"
        folder.mkdir(parents=True)
        if number < DISTINCT:
            for builder, values in sample(number).items():
                dump(folder / f"{builder}.gz", values)
        else:
            shutil.copytree(written[number % DISTINCT], folder, dirs_exist_ok=True)
        written.append(folder)
    return sum(path.stat().st_size for path in root.glob("*/*/*.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument(
        "--workers", type=int, default=2, help="DataLoader workers of NAVSIM's side"
    )
    parser.add_argument("--threads", type=int, default=2, help="reading threads of Convoy's")
    parser.add_argument("--epochs", type=int, default=8, help="that Convoy's side reads in one go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the data is written")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    written = write_rates(folder / "written", args.rounds)
    gzip_bytes = write_cache(folder / "cache", args.samples) / args.samples
    source = CacheInput.open(folder / "cache", False)
    started = time.perf_counter()
    manifest = prepare(source, folder / "shards", Options(workers=1), Task("benchmark")).manifest
    from_cache = args.samples / (time.perf_counter() - started)
    assert manifest is not None and manifest.samples == args.samples
    data = navsim_dataset(folder / "cache", list(manifest.logs))
    split = split_of(manifest, folder / "shards", manifest.logs)
    reader = ShardReader(args.threads, pinned=False)
    order = list(range(args.samples)) * args.epochs

    def navsim() -> Iterable[Any]:
        prefetch = 2 if args.workers else None
        return DataLoader(data, BATCH, num_workers=args.workers, prefetch_factor=prefetch)

    def convoy() -> Iterable[PackedBatch]:
        return ShardLoader(split, BUILDERS, order, BATCH, reader, prefetch=4)

    rates: dict[str, list[float]] = {"NAVSIM": [], "Convoy": [], "Convoy, decoded on the host": []}
    for _ in range(args.rounds):
        rates["NAVSIM"].append(rate(navsim(), lambda batch: len(batch[0]["token"])))
        rates["Convoy"].append(rate(convoy(), lambda batch: batch.size))
        decoded = (batch.decode() for batch in convoy())
        rates["Convoy, decoded on the host"].append(rate(decoded, lambda b: len(b[0]["token"])))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    wrote = {name: statistics.median(values) for name, values in written.items()}
    record = {
        "benchmark": "data_nested",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "read_samples_per_s": rates,
        "read_ratio": middle["Convoy"] / middle["NAVSIM"],
        "written_samples_per_s": written,
        "written_ratio": wrote["Convoy"] / wrote["NAVSIM"],
        "prepare_from_cache_samples_per_s": from_cache,
        "bytes_per_sample": {"gzip": gzip_bytes, "packed": manifest.bytes / manifest.samples},
    }
    rows = [[f"read: {name}", value, value / middle["NAVSIM"]] for name, value in middle.items()]
    rows += [
        [f"written by one process: {name}", value, value / wrote["NAVSIM"]]
        for name, value in wrote.items()
    ]
    rows += [
        ["prepare from the gzip cache, one process", from_cache, ""],
        ["kB a sample: gzip", gzip_bytes / 1e3, ""],
        ["kB a sample: shards", manifest.bytes / manifest.samples / 1e3, ""],
    ]
    title = f"nested samples as GTRS's, batch {BATCH}, {args.samples} samples, page cache warm"
    print_report(title, ("", "samples/s or kB", "times NAVSIM's"), rows, record, args.json)


if __name__ == "__main__":
    main()
