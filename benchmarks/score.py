"""`convoy score` against NAVSIM's scripts with their thread pool, on synthetic raw data: scenes per
second and core of metric caching, and of scoring with the cache there.

    python benchmarks/score.py --samples 96 --workers 2

Both sides run on a few scenes and on many, with as many workers; rates are of the difference, so
that starts and imports do not count (their seconds stand beside). The agent is constant velocity:
what differs is all but the agent.
"""

import argparse
import os
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

    def timed(self, *command: str) -> float:
        started = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, *command],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if ran.returncode:
            sys.exit(ran.stdout[-4000:])
        return time.perf_counter() - started


class Navsim(Side):
    def script(self, name: str, *words: str) -> float:
        root = tree.find()
        assert root is not None
        return self.timed(
            *("-m", "convoy.navsim.torchvision_cpu"),
            str(root / "navsim/planning/script" / name),
            *("train_test_split=mini", INTERVAL, *words),
            "worker=single_machine_thread_pool",
            f"worker.max_workers={self.workers}",
        )

    def cached(self) -> float:
        return self.script("run_metric_caching.py")

    def scored(self) -> float:
        out = f"output_dir={self.folder / 'out'}"
        return self.script("run_pdm_score_one_stage.py", AGENT, "experiment_name=x", out)


class Convoy(Side):
    """Caching is the time by which a scoring is longer that has to make its metric cache."""

    def run(self, name: str) -> float:
        where = [f"--out={self.folder / name}", f"--workers={self.workers}", "--no-baselines"]
        return self.timed("-m", "convoy.commands", "score", AGENT, "--split=mini", *where, INTERVAL)

    def cached(self) -> float:
        return self.run("first")

    def scored(self) -> float:
        return self.run("second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sizes = (FEW * args.workers, args.samples)
    seconds: dict[str, list[list[float]]] = {"NAVSIM": [], "Convoy": []}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            raw = Path(temporary) / f"raw-{size}"
            write_raw(raw, size, logs=2 * args.workers, seed=2, all_cameras=False)
            for name, kind in (("NAVSIM", Navsim), ("Convoy", Convoy)):
                side = kind(Path(temporary) / f"{name}-{size}", raw, args.workers)
                side.folder.mkdir()
                seconds[name].append([side.cached(), side.scored()])
                print(name, size, seconds[name][-1], file=sys.stderr, flush=True)
    more = (sizes[1] - sizes[0]) / args.workers
    record: dict[str, Any] = {"samples": sizes, "workers": args.workers, "seconds": seconds}
    rows = []
    for name, (small, large) in seconds.items():
        caching, scoring = (large[i] - small[i] for i in range(2))
        if name == "Convoy":  # the first call did both
            caching -= scoring
        record[name] = {"caching": more / caching, "scoring": more / scoring}
        rows.append([name, more / caching, more / scoring, sum(small), sum(large)])
    columns = ("", "caching, scenes/s/core", "scoring, scenes/s/core", "s, few", "s, many")
    title = f"{sizes[0]} and {sizes[1]} scenes, {args.workers} workers"
    print_report(title, columns, rows, record, args.json)


if __name__ == "__main__":
    main()
