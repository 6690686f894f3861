"""Samples per second of the loader alone, or up to the device, against NAVSIM's CacheOnlyDataset in
a DataLoader; bytes per sample; host memory over an epoch and at the switch to validation.

    python benchmarks/data_loader.py --samples 768 --navsim-workers 0,2 --threads 0,1,2,4 python
    benchmarks/data_loader.py --samples 4096 --navsim-workers 4,14 --threads 4,8,14 --device cuda

On a machine with no more than torch, numpy, rich and tqdm: PYTHONPATH=src, and of NAVSIM the one
file build/navsim/navsim/planning/training/dataset.py.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # NAVSIM's bar over the logs

import torch
from feature_cache import FEATURE, TARGET, navsim_dataset, write_cache
from report import print_report
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from convoy.data.cache import Builders
from convoy.data.packed_batch import PackedBatch
from convoy.data.prepare.inputs import CacheInput
from convoy.data.prepare.run import Options, prepare
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import ShardSplit, split_of
from convoy.data.shards import Manifest
from convoy.topology import Task

BUILDERS = Builders((FEATURE,), (TARGET,))
BATCH = 64
LOGS = 16


def measure(batches: Iterable[Any], size: Callable[[Any], int], seconds: float) -> float:
    """Samples/s after the first batch, for about `seconds`."""
    iterator = iter(batches)
    next(iterator)
    done, started = 0, time.perf_counter()
    for batch in iterator:
        done += size(batch)
        if time.perf_counter() - started > seconds:
            break
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def on_device(batches: Iterable[Any], device: torch.device) -> Iterable[Any]:
    """What Lightning does to a batch: packed ones are decoded on the device, dicts are copied
    tensor by tensor."""
    for batch in batches:
        if isinstance(batch, PackedBatch):
            yield batch.to(device).decode()
        else:
            yield tuple(
                {key: value.to(device, non_blocking=True) for key, value in part.items()}
                for part in batch
            )


def size_of(batch: Any) -> int:
    return batch.size if isinstance(batch, PackedBatch) else len(batch[0]["status_feature"])


def navsim_loader(data: Any, workers: int, pinned: bool, epochs: int = 1) -> DataLoader:
    """With NAVSIM's dataloader.params.

    Several epochs in one, so that a fast side has enough to do.
    """
    sampler = RandomSampler(data, num_samples=epochs * len(data), replacement=epochs > 1)
    prefetch = 2 if workers else None
    return DataLoader(
        data,
        BATCH,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=prefetch,
    )


def shard_loader(split: ShardSplit, reader: ShardReader, epochs: int) -> ShardLoader:
    sampler = RandomSampler(
        split.samples, num_samples=epochs * len(split.samples), replacement=epochs > 1
    )
    return ShardLoader(split, BUILDERS, sampler, BATCH, reader, prefetch=4)


class BatchDataset(Dataset):
    """Packed batches by worker processes, for the comparison with threads: an item is a whole batch
    in one tensor."""

    def __init__(self, split: ShardSplit) -> None:
        self._split = split
        self._reader: ShardReader | None = None

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        self._reader = self._reader or ShardReader(0, pinned=False)
        batch = next(
            iter(ShardLoader(self._split, BUILDERS, indices, len(indices), self._reader, 1))
        )
        return batch.memory.clone()

    def __len__(self) -> int:
        return len(self._split.samples)


def process_loader(split: ShardSplit, workers: int, pinned: bool, epochs: int) -> DataLoader:
    sampler = RandomSampler(
        split.samples, num_samples=epochs * len(split.samples), replacement=epochs > 1
    )
    batches = BatchSampler(sampler, BATCH, drop_last=True)
    return DataLoader(
        BatchDataset(split),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=True,
        collate_fn=lambda memory: memory,
    )


def memory_mb() -> float:
    """Proportional memory of this process and its children, in MB.

    Shared pages are counted once.
    """
    total = 0
    for pid in [os.getpid(), *children(os.getpid())]:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1000


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *children(child)]
    return found


def memory_over_an_epoch(train: Any, val: Any) -> dict[str, float]:
    """MB above what the process had before, when the epoch has begun, at its end, and in the
    validation after it."""
    before = memory_mb()
    marks, number, batches = {}, 0, len(train)
    for number, _ in enumerate(train, 1):
        if number == 2:
            marks["begin"] = memory_mb() - before
        if number == batches - 1:
            marks["end"] = memory_mb() - before
    for _ in val:
        marks["validation"] = memory_mb() - before
        break
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=768)
    parser.add_argument(
        "--navsim-workers", default="0,2", help="DataLoader workers for NAVSIM's side"
    )
    parser.add_argument("--threads", default="0,1,2,4", help="reading threads for Convoy's")
    parser.add_argument(
        "--processes", default="2", help="worker processes over the same shards, for the comparison"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: batches go to the GPU"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row")
    parser.add_argument(
        "--folder", type=Path, help="where the data is written (default: a temporary folder)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    cache = folder / "cache"
    gzip_bytes = write_cache(cache, args.samples, LOGS) / args.samples
    manifest = prepare(
        CacheInput.open(cache, False), folder / "shards", Options(), Task("benchmark")
    ).manifest
    assert manifest is not None
    split = split_of(manifest, folder / "shards", manifest.logs)
    data = navsim_dataset(cache, [path.name for path in cache.iterdir()])
    assert len(data) == len(split.samples) == args.samples
    device = torch.device(args.device)
    pinned = device.type == "cuda"
    epochs = max(1, round(args.seconds * 20_000 / args.samples))

    rows: list[list[Any]] = []
    rates: dict[str, float] = {}

    def add(name: str, batches: Iterable[Any], size: Callable[[Any], int] = size_of) -> None:
        if pinned and size is size_of:
            batches = on_device(batches, device)
        rates[name] = measure(batches, size, args.seconds)
        rows.append([name, rates[name]])

    for workers in map(int, args.navsim_workers.split(",")):
        add(f"NAVSIM, {workers} workers", navsim_loader(data, workers, pinned))
    for threads in map(int, args.threads.split(",")):
        reader = ShardReader(threads, pinned)
        add(f"Convoy, {threads} threads", shard_loader(split, reader, epochs))
        reader.close()
    if not pinned:
        reader = ShardReader(2, pinned)
        decoded = (batch.decode() for batch in shard_loader(split, reader, epochs))
        add("Convoy, 2 threads, decoded on the host", decoded)
        reader.close()
    for workers in map(int, args.processes.split(",")):
        loader = process_loader(split, workers, pinned, epochs)
        add(f"packed, {workers} worker processes, host only", loader, lambda memory: BATCH)
        del loader

    best = {
        side: max(rate for name, rate in rates.items() if name.startswith(side))
        for side in ("NAVSIM", "Convoy")
    }
    memory = memories(args, data, manifest, folder / "shards", pinned)
    record = {
        "benchmark": "data_loader",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "samples_per_s": rates,
        "ratio_of_best": best["Convoy"] / best["NAVSIM"],
        "bytes_per_sample": {"gzip": gzip_bytes, "packed": manifest.bytes / manifest.samples},
        "memory_mb": memory,
    }
    for side, marks in memory.items():
        rows += [[f"{side}: MB at the epoch's {mark}", value] for mark, value in marks.items()]
    rows += [
        ["kB a sample, gzip", gzip_bytes / 1e3],
        ["kB a sample, packed", manifest.bytes / manifest.samples / 1e3],
    ]
    title = (
        f"samples/s, batch {BATCH}, {args.samples} samples, page cache warm, to the {args.device}"
    )
    print_report(title, ("", "samples/s, MB or kB"), rows, record, args.json)


def memories(
    args: argparse.Namespace, data: Any, manifest: Manifest, root: Path, pinned: bool
) -> dict[str, Any]:
    """Both sides with what they train with by default: four workers, or four threads. An epoch,
    then validation."""
    logs = manifest.logs
    train, val = split_of(manifest, root, logs[2:]), split_of(manifest, root, logs[:2])
    reader = ShardReader(4, pinned)
    ours = memory_over_an_epoch(shard_loader(train, reader, 1), shard_loader(val, reader, 1))
    reader.close()
    loaders = [navsim_loader(part, 4, pinned) for part in (data, data)]
    return {"Convoy": ours, "NAVSIM": memory_over_an_epoch(*loaders)}


if __name__ == "__main__":
    main()
