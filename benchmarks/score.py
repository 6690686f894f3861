"""`convoy score` against NAVSIM's scripts with their thread pool, on synthetic raw data: scenes per
second and core of metric caching, and of scoring with the cache there.

    python benchmarks/score.py --samples 96 --workers 2

Both sides run on a few scenes and on many, with as many workers; rates are of the difference, so
that starts and imports do not count. They are given by the clock, per worker, and by processor
time, which a machine that others use leaves as it is. The agent is constant velocity: what differs
is all but the agent.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import print_report

from convoy.navsim import tree
from convoy.synthetic.raw import write_raw

AGENT = "agent=constant_velocity_agent"
INTERVAL = "train_test_split.scene_filter.frame_interval=1"
FEW = 4  # scenes for each worker in the small data set


def processor_time() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Side:
    """One side's two commands over a raw data set of its size."""

    def __init__(self, folder: Path, raw: Path, workers: int) -> None:
        self.cache, self.folder, self.workers = folder / "metric_cache", folder, workers
        self.environment = os.environ | {
            "OPENSCENE_DATA_ROOT": str(raw),
            "NUPLAN_MAPS_ROOT": str(raw / "maps"),
            "NAVSIM_EXP_ROOT": str(folder),
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
        }

    def timed(self, *command: str) -> tuple[float, float]:
        """Seconds by the clock, and of processor time."""
        started, before = time.perf_counter(), processor_time()
        ran = subprocess.run(
            [sys.executable, *command],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if ran.returncode:
            sys.exit(ran.stdout[-4000:])
        return time.perf_counter() - started, processor_time() - before


class Navsim(Side):
    def script(self, name: str, *words: str) -> tuple[float, float]:
        root = tree.find()
        assert root is not None
        return self.timed(
            *("-m", "convoy.navsim.torchvision_cpu"),
            str(root / "navsim/planning/script" / name),
            *("train_test_split=mini", INTERVAL, *words),
            "worker=single_machine_thread_pool",
            f"worker.max_workers={self.workers}",
        )

    def cached(self) -> tuple[float, float]:
        return self.script("run_metric_caching.py")

    def scored(self) -> tuple[float, float]:
        out = f"output_dir={self.folder / 'out'}"
        return self.script("run_pdm_score_one_stage.py", AGENT, "experiment_name=x", out)


class Convoy(Side):
    """Caching is the time by which a scoring is longer that has to make its metric cache."""

    def run(self, name: str) -> tuple[float, float]:
        where = [f"--out={self.folder / name}", f"--workers={self.workers}", "--no-baselines"]
        return self.timed("-m", "convoy.commands", "score", AGENT, "--split=mini", *where, INTERVAL)

    def cached(self) -> tuple[float, float]:
        return self.run("first")

    def scored(self) -> tuple[float, float]:
        return self.run("second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sizes = (FEW * args.workers, args.samples)
    seconds: dict[str, list[list[tuple[float, float]]]] = {"NAVSIM": [], "Convoy": []}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            raw = Path(temporary) / f"raw-{size}"
            write_raw(raw, size, logs=2 * args.workers, seed=2, all_cameras=False)
            for name, made in (("NAVSIM", Navsim), ("Convoy", Convoy)):
                side = made(Path(temporary) / f"{name}-{size}", raw, args.workers)
                side.folder.mkdir()
                seconds[name].append([side.cached(), side.scored()])
                print(name, size, seconds[name][-1], file=sys.stderr, flush=True)
    more = sizes[1] - sizes[0]
    record: dict[str, Any] = {"samples": sizes, "workers": args.workers, "seconds": seconds}
    rows = []
    for name, (small, large) in seconds.items():
        for clock, kind in enumerate(("clock", "processor")):
            caching, scoring = (large[step][clock] - small[step][clock] for step in range(2))
            if name == "Convoy":  # the first call did both
                caching -= scoring
            cores = args.workers if kind == "clock" else 1
            rates = [more / seconds_more / cores for seconds_more in (caching, scoring)]
            record[f"{name}, {kind}"] = {"caching": rates[0], "scoring": rates[1]}
            start = small[1][clock] - scoring * sizes[0] / more
            rows.append([f"{name}, {kind}", *rates, start])
    columns = ("", "caching, scenes/s/core", "scoring, scenes/s/core", "start of scoring, s")
    title = f"{sizes[0]} and {sizes[1]} scenes, {args.workers} workers"
    print_report(title, columns, rows, record, args.json)


if __name__ == "__main__":
    main()
