"""From sbatch to the first optimiser step on an idle testbed, with the image mounted and unpacked,
against a bare srun of torchrun with the same Python.

All sides train the built-in agent on the same nodes from the same image. The bare side is what a
person would type by hand: srun, the container, torchrun with a fixed endpoint, no check, no search
for a port, nothing handed over. It also measures what unpacking takes, and `import torch` from a
mounted and an unpacked image: first with none of its files in memory, then again.

    python benchmarks/cluster_launch.py --repeats 5 --json
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from report import print_report

ROOT = Path(__file__).parents[1]
NAME = "convoy-bench"
DISK = "/var/tmp/images"  # a node's own
# Lets the kernel forget the files below the given paths, and those alone.
FORGET = """
import os, pathlib, sys
for given in map(pathlib.Path, sys.argv[1:]):
    for path in given.rglob("*") if given.is_dir() else [given]:
        if path.is_file() and not path.is_symlink():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
"""
PHASES = (
    "queue and batch script",
    "rendezvous on the first node",
    "containers and checks",
    "torch and Lightning, first step",
)


@dataclass(frozen=True)
class Cluster:
    """A testbed of its own, so that nobody else's job is on it."""

    image: Path

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "testbed/cluster.py", f"--name={NAME}", *arguments],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}")
        return done.stdout

    def run(self, *command: str) -> str:
        return self.manage("run", *command)

    def import_torch(self, image: str) -> tuple[float, float]:
        """Seconds of two imports on a node, the first with none of the image's files in memory."""
        node = ["run", "--host=gl001"]
        self.manage("run", "--host=gl001", "--root", "python3", "-c", FORGET, image)
        taken = []
        for _ in range(2):
            began = time.time()
            self.manage(*node, "apptainer", "exec", image, "python", "-c", "import torch")
            taken.append(time.time() - began)
        return taken[0], taken[1]

    def born(self, path: str) -> float:
        """When a file was made, in seconds since the epoch."""
        return float(self.run("stat", "--format=%.9W", path))

    def first_step(self, run_dir: str) -> float:
        log = self.run("cat", f"{run_dir}/logs/rank-000.log")
        line = next(line for line in log.splitlines() if "samples/s" in line)
        stamp = datetime.strptime(" ".join(line.split()[:2]), "%Y-%m-%d %H:%M:%S,%f")
        offset = int(self.run("date", "+%z")) // 100
        return (stamp - datetime(1970, 1, 1)).total_seconds() - offset * 3600


def convoy(
    cluster: Cluster, nodes: int, overrides: list[str], name: str, disk: str = ""
) -> tuple[float, list[float]]:
    """Seconds from sbatch to the first step, and how they split up; unpacked on `disk`, if any."""
    run_dir, log = f"/scratch/convoy-{name}", f"/scratch/convoy-{name}.log"
    started = time.time()
    cluster.run(
        "env",
        f"CONVOY_IMAGE={cluster.image}",
        f"CONVOY_UNPACK={disk}",
        "sbatch",
        "--wait",
        f"--nodes={nodes}",
        f"--output={log}",
        "slurm/torchrun_1node.slurm",
        *overrides,
        f"run_dir={run_dir}",
    )
    agent = min(
        cluster.born(path)
        for path in cluster.run("sh", "-c", f"ls {run_dir}/logs/torchrun-*").split()
    )
    marks = [
        started,
        cluster.born(log),
        cluster.born(f"{run_dir}/launches.jsonl"),
        agent,
        cluster.first_step(run_dir),
    ]
    return marks[-1] - marks[0], [
        later - earlier for earlier, later in zip(marks, marks[1:], strict=False)
    ]


def bare(cluster: Cluster, nodes: int, overrides: list[str], index: int) -> float:
    run_dir = f"/scratch/bare-{index}"
    command = [
        "torchrun",
        f"--nnodes={nodes}",
        "--nproc-per-node=4",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=gl001:29500",
        f"--rdzv-id={index}",
        "-m",
        "convoy.launch.rank",
        f"--run-dir={run_dir}",
        *overrides,
    ]
    started = time.time()
    cluster.run(
        "env",
        "OMP_NUM_THREADS=1",
        "srun",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=128",
        "--mem=0",
        "apptainer",
        "--quiet",
        "exec",
        "--bind=/scratch",
        str(cluster.image),
        *command,
    )
    return cluster.first_step(run_dir) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image", type=Path, default=ROOT / "build/convoy.sif")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cluster = Cluster(args.image.absolute())
    cluster.manage("down")
    cluster.manage("up", f"--nodes={args.nodes}")
    try:
        cluster.run(
            "apptainer",
            "run",
            "--bind=/scratch",
            str(cluster.image),
            "synth",
            "/scratch/cache",
            "--samples=64",
            "--logs=4",
        )
        overrides = [
            "agent=bev_fusion_agent",
            "cache_path=/scratch/cache",
            "data.val_fraction=0.25",
            "global_batch=16",
            "+trainer.params.max_steps=2",
            "trainer.params.log_every_n_steps=1",
            "dataloader.params.num_workers=0",
            "trainer.params.limit_val_batches=0",
            "trainer.params.accelerator=cpu",
            "trainer.params.precision=32-true",
        ]
        ours, splits, theirs, unpacked = [], [], [], []
        for index in range(
            args.repeats + 1
        ):  # the first of each fills the page cache and does not count
            theirs.append(bare(cluster, args.nodes, overrides, index))
            seconds, split = convoy(cluster, args.nodes, overrides, f"{index}")
            ours.append(seconds)
            splits.append(split)
            unpacked.append(convoy(cluster, args.nodes, overrides, f"unpacked-{index}", DISK)[0])
        said = cluster.run("cat", "/scratch/convoy-unpacked-0.log")
        unpacking = re.findall(r"is unpacked on \S+ after (\d+) s: (\S+)", said)
        if len(unpacking) != args.nodes:
            sys.exit(f"the image was not unpacked on each node:\n{said}")
        imports = {
            "mounted": cluster.import_torch(str(cluster.image)),
            "unpacked": cluster.import_torch(unpacking[0][1]),
        }
        container = []
        for _ in range(args.repeats):
            began = time.time()
            cluster.run("apptainer", "exec", str(cluster.image), "true")
            container.append(time.time() - began)
    finally:
        cluster.manage("down")
    medians = [
        statistics.median(split[phase] for split in splits[1:]) for phase in range(len(PHASES))
    ]
    record = {
        "nodes": args.nodes,
        "processes_per_node": 4,
        "convoy_s": statistics.median(ours[1:]),
        "bare_s": statistics.median(theirs[1:]),
        "unpacked_s": statistics.median(unpacked[1:]),
        "all_convoy_s": ours[1:],
        "all_bare_s": theirs[1:],
        "all_unpacked_s": unpacked[1:],
        "first_unpacked_s": unpacked[0],
        "unpacking_s": max(int(seconds) for seconds, _ in unpacking),
        "import_torch_s": imports,
        "phases_s": dict(zip(PHASES, medians, strict=True)),
        "empty_container_s": statistics.median(container),
    }
    record["ratio"] = record["convoy_s"] / record["bare_s"]
    rows = [
        ["sbatch to first step", record["convoy_s"], record["ratio"]],
        *([f"  {phase}", seconds, ""] for phase, seconds in record["phases_s"].items()),
        [
            "sbatch to first step, image unpacked before",
            record["unpacked_s"],
            record["unpacked_s"] / record["bare_s"],
        ],
        ["  the same, unpacked by this job", record["first_unpacked_s"], ""],
        ["  of it unpacking and verifying, the slowest node", record["unpacking_s"], ""],
        *(
            [f"import torch, {kind}, {when}", seconds, ""]
            for kind, both in imports.items()
            for when, seconds in zip(("first", "again"), both, strict=True)
        ),
        ["bare srun torchrun to first step", record["bare_s"], 1.0],
        ["an empty container, with docker exec", record["empty_container_s"], ""],
    ]
    title = f"launch on {args.nodes} node(s) x 4 ranks, median of {args.repeats}"
    print_report(title, ("", "seconds", "against bare"), rows, record, args.json)


if __name__ == "__main__":
    main()
