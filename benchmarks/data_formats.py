"""Random batches of packed samples: Convoy's reader, against other libraries.

Every side holds the same records of 886 kB in the same number of files, reads them in the same
random order with the same number of threads, and gives batches of 64 as a training needs them: each
tensor's samples side by side, in one of four blocks of host memory that are used in turn (a loader
reads ahead). Once with all files in the page cache, and once with none of them there; and what a
sample costs in processor time, which other work on the machine does not change. Libraries that are
not installed are left out; all of them: pip install array-record grain mosaicml-streaming litdata
safetensors pyarrow (not among Convoy's requirements).

    python benchmarks/data_formats.py --samples 1024
"""

import argparse
import gc
import importlib.metadata
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feature_cache import FEATURE, TARGET, sample
from report import print_report

from convoy.data.cache import Builders
from convoy.data.layout import Layout
from convoy.data.packing import pack, probe, record_parts
from convoy.data.shard import Builder
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shard_writer import ShardWriter
from convoy.data.shards import Manifest, write_manifest

BATCH, FILES, THREADS, BLOCKS = 64, 8, 2, 4
Reader = Callable[[np.ndarray], None]  # goes through the data set once, in the order of the indices
Opener = Callable[[], Reader]
PLAIN = "Convoy's reader"
# A training has these anyway.
PROVIDED = {"numpy", "torch", "torchvision", "pytorch-lightning", "lightning"}


def convoy(folder: Path, samples: list[Any], count: int) -> Opener:
    layout = probe(samples)
    shards, each = [], count // FILES
    for file in range(FILES):
        with ShardWriter(folder, f"log-{file}", 0, layout) as writer:
            for row in range(each):
                writer.add(f"{file * each + row:08d}", samples[row % len(samples)])
            shards.append(writer.finish({}))
    manifest = Manifest((Builder(FEATURE, "feature"), Builder(TARGET, "target")), {}, tuple(shards))
    write_manifest(folder, manifest)

    def open_reader() -> Reader:
        split, reader = (
            split_of(manifest, folder, manifest.logs),
            ShardReader(THREADS, pinned=False),
        )

        def read(order: np.ndarray) -> None:
            for _ in ShardLoader(
                split, Builders((FEATURE,), (TARGET,)), order.tolist(), BATCH, reader, BLOCKS - 1
            ):
                pass

        return read

    return open_reader


@dataclass(frozen=True)
class Blocks:
    """Where a batch's tensors go: for each field its place in a record, and an array (batch, bytes)
    in each block."""

    places: list[tuple[int, int]]
    blocks: list[list[np.ndarray]]

    @classmethod
    def of(cls, layout: Layout) -> "Blocks":
        places = [
            (layout.offsets[field.builder, field.name], field.bytes) for field in layout.fields
        ]
        return cls(
            places,
            [[np.zeros((BATCH, size), np.uint8) for _, size in places] for _ in range(BLOCKS)],
        )

    def put(self, batch: int, position: int, record: Any) -> None:
        values = np.frombuffer(record, np.uint8)
        for (offset, size), column in zip(self.places, self.blocks[batch % BLOCKS], strict=True):
            column[position] = values[offset : offset + size]


def reader_of(row: Callable[[int], Any], layout: Layout, threads: int = THREADS) -> Reader:
    """Batches of the records that `row` gives for an index."""
    blocks, pool = Blocks.of(layout), ThreadPoolExecutor(threads)

    def fill(batch: int, part: Sequence[tuple[int, int]]) -> None:
        for position, index in part:
            blocks.put(batch, position, row(index))

    def read(order: np.ndarray) -> None:
        for batch, start in enumerate(range(0, len(order), BATCH)):
            indices = list(enumerate(order[start : start + BATCH].tolist()))
            list(
                pool.map(
                    fill, [batch] * threads, [indices[thread::threads] for thread in range(threads)]
                )
            )

    return read


def write_array_records(folder: Path, records: Sequence[bytes], count: int) -> list[str]:
    from array_record.python.array_record_module import ArrayRecordWriter

    paths = [str(folder / f"{file}.array_record") for file in range(FILES)]
    for path in paths:
        writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
        for row in range(count // FILES):
            writer.write(records[row % len(records)])
        writer.close()
    return paths


def array_record(folder: Path, records: Sequence[bytes], count: int, layout: Layout) -> Opener:
    from array_record.python.array_record_module import ArrayRecordReader

    each, paths = count // FILES, write_array_records(folder, records, count)

    def open_reader() -> Reader:
        readers = [ArrayRecordReader(path, options="readahead_buffer_size:0") for path in paths]
        return reader_of(lambda index: readers[index // each].read([index % each])[0], layout)

    return open_reader


def grain(folder: Path, records: Sequence[bytes], count: int, layout: Layout) -> Opener:
    from grain.python import ArrayRecordDataSource

    paths = write_array_records(folder, records, count)

    def open_reader() -> Reader:
        source, blocks = ArrayRecordDataSource(paths), Blocks.of(layout)

        def read(order: np.ndarray) -> None:  # its own threads read a batch
            for batch, start in enumerate(range(0, len(order), BATCH)):
                for position, record in enumerate(
                    source.__getitems__(order[start : start + BATCH].tolist())
                ):
                    blocks.put(batch, position, record)

        return read

    return open_reader


def mds(folder: Path, records: Sequence[bytes], count: int, layout: Layout) -> Opener:
    import convoy.navsim.torchvision_cpu  # noqa: F401  # streaming imports torchvision

    # isort: split
    from streaming import MDSWriter, StreamingDataset

    limit = (len(records[0]) + 64) * (count // FILES)
    with MDSWriter(out=str(folder), columns={"record": "bytes"}, size_limit=limit) as writer:
        for number in range(count):
            writer.write({"record": records[number % len(records)]})
    # Opens its files for each item.
    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return lambda: reader_of(lambda index: data[index]["record"], layout)


def litdata(folder: Path, records: Sequence[bytes], count: int, layout: Layout) -> Opener:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=count // FILES)
    for number in range(count):
        writer[number] = records[number % len(records)]
    writer.done()
    writer.merge(num_workers=1)

    def open_reader() -> Reader:
        data = StreamingDataset(str(folder), shuffle=False)
        # Its items may not be read from threads.
        return reader_of(lambda index: data[index], layout, threads=1)

    return open_reader


def safetensors(folder: Path, records: Sequence[bytes], count: int, layout: Layout) -> Opener:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    each = count // FILES
    rows = np.stack([np.frombuffer(records[row % len(records)], np.uint8) for row in range(each)])
    paths = [folder / f"{file}.safetensors" for file in range(FILES)]
    for path in paths:
        save_file({"records": rows}, path)

    def open_reader() -> Reader:
        slices = [safe_open(path, "numpy").get_slice("records") for path in paths]
        return reader_of(lambda index: slices[index // each][index % each], layout)

    return open_reader


def arrow(folder: Path, records: Sequence[bytes], count: int, layout: Layout) -> Opener:
    import pyarrow as pa

    each = count // FILES
    paths = [str(folder / f"{file}.arrow") for file in range(FILES)]
    for path in paths:
        array = pa.array([records[row % len(records)] for row in range(each)], pa.large_binary())
        table = pa.table({"record": array})
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def open_reader() -> Reader:
        tables = [pa.ipc.open_file(pa.memory_map(path)).read_all() for path in paths]
        columns = [table["record"].chunk(0) for table in tables]
        return reader_of(lambda index: columns[index // each][index % each].as_buffer(), layout)

    return open_reader


SIDES: dict[str, tuple[str, Callable[..., Opener]]] = {
    "ArrayRecord": ("array-record", array_record),
    "Grain over ArrayRecord": ("grain", grain),
    "MDS (mosaicml-streaming)": ("mosaicml-streaming", mds),
    "LitData": ("litdata", litdata),
    "safetensors": ("safetensors", safetensors),
    "Arrow": ("pyarrow", arrow),
}


def forget(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def weight(name: str, seen: set[str] | None = None) -> tuple[int, int]:
    """Installed bytes of a distribution and of all that it needs beyond what a training has anyway,
    and how many."""
    seen = set() if seen is None else seen
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen or key in PROVIDED:
        return 0, 0
    seen.add(key)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return 0, 0
    size, packages = sum(file.size or 0 for file in found.files or []), 1
    for requirement in found.requires or []:
        if "extra ==" not in requirement:
            below = weight(re.split(r"[^A-Za-z0-9_.-]", requirement)[0], seen)
            size, packages = size + below[0], packages + below[1]
    return size, packages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the data is written (default: a temporary folder)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    count = args.samples // (FILES * BATCH) * FILES * BATCH
    samples = [sample(number) for number in range(16)]
    layout = probe(samples)
    packed = [record_parts(layout, pack(one, layout)[1]) for one in samples]
    records = [b"".join(part.data for part in parts) for parts in packed]
    installed = {name: side for name, side in SIDES.items() if weight(side[0])[1]}
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        openers: dict[str, Opener] = {}
        folders: dict[str, Path] = {}
        for name in (PLAIN, *installed):
            folder = folders[name] = Path(root) / re.sub(r"\W", "", name)
            folder.mkdir()
            if name == PLAIN:
                openers[name] = convoy(folder, samples, count)
            else:
                openers[name] = installed[name][1](folder, records, count, layout)
        os.sync()
        rates: dict[str, dict[str, list[float]]] = {
            name: {"cold": [], "warm": []} for name in openers
        }
        costs: dict[str, list[float]] = {name: [] for name in openers}
        for number in range(args.rounds):
            order = np.random.default_rng(number).permutation(count)
            for name, open_reader in openers.items():
                forget(folders[name])
                read = open_reader()
                for state in ("cold", "warm", "warm"):
                    started, worked = time.perf_counter(), time.process_time()
                    read(order)
                    rates[name][state].append(count / (time.perf_counter() - started))
                    if state == "warm":
                        costs[name].append((time.process_time() - worked) / count * 1e6)
                del read
                gc.collect()
    medians = {
        name: {state: statistics.median(found) for state, found in of.items()}
        for name, of in rates.items()
    }
    ours = medians[PLAIN]
    slower = {
        name: {state: ours[state] / of[state] for state in of} for name, of in medians.items()
    }
    cost = {name: statistics.median(found) for name, found in costs.items()}
    weights = {name: weight(side[0]) for name, side in installed.items()}
    rows = [
        [
            name,
            of["warm"],
            slower[name]["warm"],
            of["cold"],
            slower[name]["cold"],
            cost[name],
            f"{weights[name][0] / 1e6:.0f} MB, {weights[name][1]}" if name in weights else "0",
        ]
        for name, of in medians.items()
    ]
    record = {
        "benchmark": "data_formats",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "samples_per_s": rates,
        "times_slower_than_convoys": slower,
        "processor_us_per_warm_sample": cost,
        "weight": {
            name: {"bytes": size, "packages": packages}
            for name, (size, packages) in weights.items()
        },
        "versions": {side[0]: importlib.metadata.version(side[0]) for side in installed.values()},
    }
    title = (
        f"samples/s of random batches of {BATCH} x {len(records[0]) / 1e3:.0f} kB, "
        f"{count} samples, {THREADS} threads"
    )
    columns = (
        "",
        "page cache warm",
        "Convoy's is faster by",
        "cold",
        "Convoy's is faster by",
        "I/O faults",
        "installs, packages",
    )
    print_report(title, columns, rows, record, args.json)
    sys.stdout.flush()
    os._exit(0)  # some of the libraries leave threads that do not end


if __name__ == "__main__":
    main()
