"""Samples nested as those of GTRS (lists of pictures, numpy arrays, a string) from shards, against
NAVSIM's gzip cache: reading batches for the training, and writing what the builders gave.

    python benchmarks/data_nested.py --samples 32 --json > benchmarks/results/data_nested.json

NAVSIM's side is its own CacheOnlyDataset in a DataLoader with its own default_collate, and its own
dump_feature_target_to_pickle. Both sides use one process and one thread, so samples per second of
processor time can be compared too, where the machine has other things to do. Batches from shards
are packed, as they cross to a GPU; "decoded on the host" is what a training on the CPU gets.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # NAVSIM's bar over the logs

import numpy as np
import torch
from feature_cache import FEATURE, TARGET, navsim_dataset, navsim_module
from report import print_report
from torch.utils.data import DataLoader

from convoy.data.cache import Builders
from convoy.data.packing import probe
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
SHARD = 16  # samples of a shard that is written: 200 MB
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


@dataclass
class Stopwatch:
    """Samples per second of the clock and of the processor."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], int]) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        samples = work()
        self.clock.append(samples / (time.perf_counter() - clock))
        self.processor.append(samples / (time.process_time() - processor))

    def medians(self) -> tuple[float, float]:
        return statistics.median(self.clock), statistics.median(self.processor)


def writing(folder: Path, rounds: int) -> dict[str, Stopwatch]:
    """What builders gave, written to NAVSIM's files and to a shard, in turns. What one side wrote
    is deleted before the other's turn, so that both find the same free memory."""
    dump = navsim_module().dump_feature_target_to_pickle
    given = [sample(number) for number in range(DISTINCT)]
    layout = probe(given)  # as convoy prepare does, once for all

    def navsim() -> int:
        for number, values in enumerate(given):
            (folder / f"gzip/{number}").mkdir(parents=True)
            for builder, content in values.items():
                dump(folder / f"gzip/{number}/{builder}.gz", content)
        return len(given)

    def convoy() -> int:
        with ShardWriter(folder / "shards", "log", 0, layout) as writer:
            for number in range(SHARD):
                writer.add(f"{number}", given[number % DISTINCT])
            writer.finish({})
        return SHARD

    times = {"NAVSIM": Stopwatch(), "Convoy": Stopwatch()}
    for _ in range(rounds):
        times["NAVSIM"].measure(navsim)
        shutil.rmtree(folder / "gzip")
        times["Convoy"].measure(convoy)
        shutil.rmtree(folder / "shards")
    return times


def write_cache(root: Path, samples: int) -> int:
    """NAVSIM's cache of `samples` samples; returns the bytes of all."""
    dump = navsim_module().dump_feature_target_to_pickle
    written: list[Path] = []
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
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4, help="that Convoy's side reads in one go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the data is written")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    written = writing(folder / "written", args.rounds)
    gzip_bytes = write_cache(folder / "cache", args.samples) / args.samples
    source = CacheInput.open(folder / "cache", False)
    manifest = prepare(source, folder / "shards", Options(workers=1), Task("benchmark")).manifest
    assert manifest is not None and manifest.samples == args.samples
    loader = DataLoader(navsim_dataset(folder / "cache", list(manifest.logs)), BATCH)
    split = split_of(manifest, folder / "shards", manifest.logs)
    reader = ShardReader(0, pinned=False)
    ours = ShardLoader(split, BUILDERS, list(range(args.samples)) * args.epochs, BATCH, reader, 1)

    read = {
        "NAVSIM": Stopwatch(),
        "Convoy": Stopwatch(),
        "Convoy, decoded on the host": Stopwatch(),
    }
    for _ in range(args.rounds):
        read["NAVSIM"].measure(lambda: sum(len(features["token"]) for features, _ in loader))
        read["Convoy"].measure(lambda: sum(batch.size for batch in ours))
        read["Convoy, decoded on the host"].measure(
            lambda: sum(len(features["token"]) for features, _ in ours)
        )
    sides = [("read", name, watch, read["NAVSIM"]) for name, watch in read.items()]
    sides += [("written", name, watch, written["NAVSIM"]) for name, watch in written.items()]
    rows: list[list[Any]] = []
    ratios = {}
    for what, name, watch, reference in sides:
        (clock, processor), (slow, much) = watch.medians(), reference.medians()
        ratios[f"{what}: {name}"] = {"clock": clock / slow, "processor": processor / much}
        rows.append([f"{what}: {name}", clock, clock / slow, processor, processor / much])
    packed = manifest.bytes / manifest.samples
    record = {
        "benchmark": "data_nested",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "read_samples_per_s": {name: asdict(watch) for name, watch in read.items()},
        "written_samples_per_s": {name: asdict(watch) for name, watch in written.items()},
        "ratios": ratios,
        "bytes_per_sample": {"gzip": gzip_bytes, "packed": packed},
    }
    title = (
        f"nested samples as GTRS's, batch {BATCH}, {args.samples} samples, page cache warm; "
        f"{gzip_bytes / 1e6:.1f} MB a sample gzipped, {packed / 1e6:.1f} MB packed"
    )
    columns = ("", "samples/s", "ratio", "samples/s of processor", "ratio")
    print_report(title, columns, rows, record, args.json)


if __name__ == "__main__":
    main()
