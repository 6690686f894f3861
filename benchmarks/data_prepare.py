"""`convoy prepare` against what it replaces, with as many processes: from a gzip cache, reading
that cache at all with NAVSIM's own function; from raw data, NAVSIM's run_dataset_caching.py.

    python benchmarks/data_prepare.py --samples 512 --raw-samples 512 --workers 2

Rates are per process and second of work, without the time to start processes; seconds are of the
whole command.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # NAVSIM's bars

from feature_cache import navsim_module, write_cache
from report import print_report

from convoy.data import pool
from convoy.navsim import tree
from convoy.synthetic import write_raw

AGENT = "transfuser_agent"
SPLIT = ("train_test_split=mini", "train_test_split.scene_filter.frame_interval=1")
# Runs NAVSIM's script as it is, beside a CPU build of torch too.
RUN = ("-m", "convoy.navsim.torchvision_cpu")


def read_only(cache: Path, log: str) -> tuple[int, float]:
    """Read a log of the cache with NAVSIM's own function: samples and seconds."""
    load = navsim_module().load_feature_target_from_pickle
    started, samples = time.perf_counter(), 0
    for token in sorted((cache / log).iterdir()):
        for path in token.iterdir():
            load(path)
        samples += 1
    return samples, time.perf_counter() - started


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def from_cache(folder: Path, samples: int, workers: int, rounds: int) -> dict[str, Any]:
    """Rates per process: reading alone, and `convoy prepare` all in all; and of the latter's time
    the share by kind."""
    cache = folder / "cache"
    gzip_bytes = write_cache(cache, samples, logs=4 * workers)
    logs = sorted(path.name for path in cache.iterdir())

    def reading() -> float:
        done = [result for _, result in pool.run(read_only, cache, logs, workers, one_thread)]
        return sum(count for count, _ in done) / sum(seconds for _, seconds in done)

    reading()  # fills the page cache
    reads = [reading()]
    prepares: list[float] = []
    spent: dict[str, float] = {}
    for number in range(rounds):
        record = prepare(folder / f"from-cache-{number}", ["--from-cache", str(cache)], workers)
        for kind, value in record["process_seconds"].items():
            spent[kind] = spent.get(kind, 0.0) + value
        prepares.append(samples / record["process_seconds"]["all"])
        shutil.rmtree(folder / f"from-cache-{number}")
        reads.append(reading())
    # Each against the readings before and after it: the machine's speed changes over minutes.
    ratios = [ours / ((reads[i] + reads[i + 1]) / 2) for i, ours in enumerate(prepares)]
    return {
        "read_samples_per_s": reads,
        "prepare_samples_per_s": prepares,
        "ratios": ratios,
        "ratio_median": statistics.median(ratios),
        "shares": {kind: value / spent["all"] for kind, value in spent.items()},
        "gzip_bytes_per_sample": gzip_bytes / samples,
        "packed_bytes_per_sample": record["bytes_per_sample"],
    }


def from_raw(folder: Path, samples: int, workers: int) -> dict[str, Any]:
    """Both commands on a few samples and on many: their start-up, and what each sample more takes;
    and of Convoy's processes the share by kind."""
    from convoy.navsim.weights import write_random_backbone

    backbone = write_random_backbone("resnet34", folder / "backbone")
    sizes = (4 * workers, samples)
    navsim_s, convoy_s = [], []
    for size in sizes:
        raw = folder / f"raw-{size}"
        write_raw(
            raw, size, logs=4 * workers, seed=0, split="mini", all_cameras=False, workers=workers
        )
        theirs, ours, record = both_from_raw(folder / str(size), raw, backbone, size, workers)
        navsim_s.append(theirs)
        convoy_s.append(ours)
    spent = record["process_seconds"]

    def samples_per_s(seconds: list[float]) -> float:
        return (sizes[1] - sizes[0]) / (seconds[1] - seconds[0]) / workers

    return {
        "samples": sizes,
        "navsim_s": navsim_s,
        "convoy_s": convoy_s,
        "navsim_samples_per_s": samples_per_s(navsim_s),
        "convoy_samples_per_s": samples_per_s(convoy_s),
        "shares": {kind: value / spent["all"] for kind, value in spent.items()},
    }


def both_from_raw(
    folder: Path, raw: Path, backbone: Path, samples: int, workers: int
) -> tuple[float, float, dict[str, Any]]:
    """Seconds of NAVSIM's command and of Convoy's, and what the latter says of itself."""
    agent = [f"agent={AGENT}", f"+agent.config.image_architecture='local-dir:{backbone}'", *SPLIT]
    environment = {
        "OPENSCENE_DATA_ROOT": str(raw),
        "NUPLAN_MAPS_ROOT": str(raw / "maps"),
        "NAVSIM_EXP_ROOT": str(folder / "exp"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    processes = [
        "worker=single_machine_thread_pool",
        "worker.use_process_pool=true",
        f"worker.max_workers={workers}",
    ]
    root = tree.find()
    assert root is not None
    script = root / "navsim/planning/script/run_dataset_caching.py"
    command = [sys.executable, *RUN, str(script), *agent, *processes, "experiment_name=cache"]
    started = time.perf_counter()
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    theirs = time.perf_counter() - started
    made = len(list((folder / "exp/training_cache").glob("*/*")))
    record = prepare(folder / "shards", [*agent, "--no-verify"], workers, environment)
    assert made == record["samples"] == samples, (made, record["samples"], samples)
    return theirs, record["command_s"], record


def prepare(
    out: Path, arguments: list[str], workers: int, environment: dict[str, str] | None = None
) -> Any:
    command = [
        sys.executable,
        "-m",
        "convoy.commands.__main__",
        "prepare",
        str(out),
        f"--workers={workers}",
        "--json",
        *arguments,
    ]
    started = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | (environment or {}), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout) | {"command_s": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512, help="of the gzip cache")
    parser.add_argument(
        "--raw-samples", type=int, default=512, help="of the raw data; 0 leaves it out"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of reading and preparing the cache in turns"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the data is written (default: a temporary folder)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        cache = from_cache(Path(folder), args.samples, args.workers, args.rounds)
        raw = from_raw(Path(folder), args.raw_samples, args.workers) if args.raw_samples else None
    read, prepared = (
        statistics.median(cache[f"{what}_samples_per_s"]) for what in ("read", "prepare")
    )
    rows = [
        ["from a cache: samples/s a process", read, prepared, cache["ratio_median"]],
        [
            "  bytes a sample",
            round(cache["gzip_bytes_per_sample"]),
            cache["packed_bytes_per_sample"],
            cache["packed_bytes_per_sample"] / cache["gzip_bytes_per_sample"],
        ],
        *[
            [f"  share of the time: {kind}", "", value, ""]
            for kind, value in cache["shares"].items()
            if kind != "all"
        ],
    ]
    if raw is not None:
        rows += [
            [
                "from raw data: samples/s a process",
                raw["navsim_samples_per_s"],
                raw["convoy_samples_per_s"],
                raw["convoy_samples_per_s"] / raw["navsim_samples_per_s"],
            ],
            *[
                [f"  seconds for {size} samples", theirs, ours, ours / theirs]
                for size, theirs, ours in zip(
                    raw["samples"], raw["navsim_s"], raw["convoy_s"], strict=True
                )
            ],
            *[
                [f"  share of the time: {kind}", "", value, ""]
                for kind, value in raw["shares"].items()
                if kind != "all"
            ],
        ]
    record = {
        "benchmark": "data_prepare",
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "from_cache": cache,
        "from_raw": raw,
    }
    title = (
        f"convoy prepare, {args.workers} processes, {args.samples} samples from a cache, "
        f"{args.raw_samples} from raw data"
    )
    print_report(title, ("", "NAVSIM", "Convoy", "ratio"), rows, record, args.json)


if __name__ == "__main__":
    main()
