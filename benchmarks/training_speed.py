"""Samples/s of training end to end from disk: NAVSIM's own run_training beside Convoy, one GPU.

    python benchmarks/training_speed.py --agent transfuser_agent --batches 64,128
    python benchmarks/training_speed.py --agent ego_status_mlp_agent --batches 64
    python benchmarks/training_speed.py --cpu --samples 96 --batches 4 --steps 20      # a try

A side is navsim:WORKERS or LEVEL[:SETTING+SETTING…]; `gzip` among the settings lets Convoy read
NAVSIM's cache, `resident` train on one batch that stays on the GPU, with a list of its kernels, and
`ranks=2` on two GPUs with so many samples on each.

The data is synthetic, of the size of real samples; weights are random. NAVSIM reads its gzip cache,
Convoy packed shards of it. Each side's steps are timed by the same callback (timed.py), without the
first of each epoch, validation and checkpoints. `waits` is the share of a step in which the loop
waits for its next batch.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ego_cache
import feature_cache
from report import print_report

HERE = Path(__file__).parent
LOGS = 32


class Bench:
    """The data, and one training after another on it."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.cache, self.shards = folder / "cache", folder / "shards"
        self.logs: list[str] = []
        self.agent = [f"agent={args.agent}"]

    def prepare(self) -> None:
        if self.args.prepared:
            self._find()
            return
        started = time.time()
        write = feature_cache.write_cache
        if self.args.agent == "ego_status_mlp_agent":
            write = ego_cache.write_cache
        write(self.cache, self.args.samples, LOGS)
        command = [
            sys.executable,
            "-m",
            "convoy.commands.__main__",
            "prepare",
            str(self.shards),
            "--from-cache",
            str(self.cache),
            *self.agent,
        ]
        run(command, self.folder / "prepare.log")
        if self.args.agent == "transfuser_agent":
            from convoy.navsim.weights import write_random_backbone

            write_random_backbone("resnet34", self.folder / "weights")
        self._find()
        print(f"data ready after {time.time() - started:.0f} s", file=sys.stderr, flush=True)

    def _find(self) -> None:
        self.logs = sorted(path.name for path in self.cache.iterdir())
        if self.args.agent == "transfuser_agent":
            weights = self.folder / "weights"
            self.agent.append(f'+agent.config.image_architecture="local-dir:{weights}"')

    def navsim(self, batch: int, workers: int) -> dict[str, Any]:
        prefetch = "2" if workers else "null"
        return self._time(
            f"navsim-{workers}-{batch}",
            "navsim.planning.script.run_training",
            batch,
            [
                f"cache_path={self.cache}",
                "use_cache_without_dataset=true",
                "force_cache_computation=false",
                "train_test_split=mini",
                "experiment_name=bench",
                f"dataloader.params.num_workers={workers}",
                f"dataloader.params.prefetch_factor={prefetch}",
                f"trainer.params.default_root_dir={self.folder}/navsim",
                *(
                    ["trainer.params.accelerator=cpu", "trainer.params.precision=32"]
                    if self.args.cpu
                    else []
                ),
                "trainer.params.max_epochs=1",
            ],
            self.args.navsim_steps,
        )

    def convoy(self, batch: int, name: str, switches: list[str]) -> dict[str, Any]:
        """`switches` are settings; `gzip` among them reads the cache, `resident` nothing."""
        path = self.cache if "gzip" in switches else self.shards
        resident = "resident" in switches
        ranks = next((int(s[6:]) for s in switches if s.startswith("ranks=")), 1)
        switches = [s for s in switches if "=" in s and not s.startswith("ranks=")]
        epochs = self.args.epochs + resident  # one more to profile
        return self._time(
            f"{name}-{batch}",
            "convoy.launch.rank",
            batch,
            self._settings(f"{batch}/{name}", path, switches, epochs),
            self.args.steps,
            resident,
            ranks,
        )

    def bucket_plans(self, batch: int, ranks: int, plans: str) -> dict[str, Any]:
        """What bucket_plans.py finds, of so many samples a rank."""
        name = f"buckets-{batch}"
        record = self.folder / f"{name}.json"
        settings = self._settings(f"{batch}/buckets", self.shards, ["speed=max"], 1000)
        command = self._command(
            record, "convoy.launch.rank", batch, settings, 0, ["--plans", plans], ranks
        )
        run(command, self.folder / f"{name}.log")
        found: dict[str, Any] = json.loads(record.read_text())
        return found

    def _settings(self, name: str, path: Path, switches: list[str], epochs: int) -> list[str]:
        return [
            f"cache_path={path}",
            *switches,
            f"run_dir={self.folder}/runs/{name}-{time.time_ns()}",
            f"compile_cache={self.args.compile_cache or self.folder / 'compile'}",
            f"dataloader.params.num_workers={self.args.workers}",
            "trainer.params.check_val_every_n_epoch=1",
            *(["trainer.params.accelerator=cpu"] if self.args.cpu else []),
            f"trainer.params.max_epochs={epochs}",
        ]

    def _time(
        self,
        name: str,
        module: str,
        batch: int,
        arguments: list[str],
        steps: int,
        resident: bool = False,
        ranks: int = 1,
    ) -> dict[str, Any]:
        record, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        profile = ["--resident", "--profile", str(self.folder / f"{name}.kernels")]
        command = self._command(
            record, module, batch, arguments, steps, profile if resident else [], ranks
        )
        started = time.time()
        run(command, log)
        result = summary(json.loads(record.read_text()), batch * ranks, started)
        print(
            f"{name}: {result['samples_per_s']:.0f} samples/s, first step after "
            f"{result['first_step']:.0f} s, whole run {result['wall']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return result

    def _command(
        self,
        record: Path,
        module: str,
        batch: int,
        arguments: list[str],
        steps: int,
        options: list[str],
        ranks: int,
    ) -> list[str]:
        """`options` are timed.py's."""
        train, val = self.logs[1:], self.logs[:1]
        limits = [f"trainer.params.limit_train_batches={steps}"] if steps else []
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr=127.0.0.1",
            f"--nproc-per-node={ranks}",
        ]
        return [
            sys.executable,
            *(launcher if ranks > 1 else []),
            str(HERE / "timed.py"),
            *options,
            str(record),
            module,
            *self.agent,
            f"train_logs=[{','.join(train)}]",
            f"val_logs=[{','.join(val)}]",
            f"dataloader.params.batch_size={batch}",
            "trainer.params.limit_val_batches=2",
            *limits,
            *arguments,
        ]


def summary(record: dict[str, Any], batch: int, started: float) -> dict[str, Any]:
    """Samples/s over all epochs but the first, where there is another."""
    epochs = record["epochs"][1:] or record["epochs"]
    seconds = sum(epoch["seconds"] for epoch in epochs)
    return {
        "samples_per_s": sum(epoch["steps"] for epoch in epochs) * batch / seconds,
        "waits": sum(epoch["waited"] for epoch in epochs) / seconds,
        "first_step": record["step_ends"][0] - started,
        "tenth_step": record["step_ends"][9] - started,
        "wall": time.time() - started,
        "memory_gib": record["memory_gib"],
        "epochs": record["epochs"],
    }


def _row(
    name: str, batch: int, result: dict[str, Any], results: list[tuple[str, int, dict[str, Any]]]
) -> tuple[Any, ...]:
    """Compared with the first side of NAVSIM's, of the same batch where there is one."""
    theirs = [(other, entry) for side, other, entry in results if side.startswith("NAVSIM")]
    base = next(
        (entry for other, entry in theirs if other == batch), theirs[0][1] if theirs else {}
    )
    rate = result["samples_per_s"]
    times = f"{rate / base['samples_per_s']:.2f}" if base else ""
    return (
        name,
        batch,
        f"{rate:.0f}",
        times,
        f"{100 * result['waits']:.1f} %",
        f"{result['tenth_step']:.0f}",
        f"{result['memory_gib']:.1f}",
    )


def run(command: list[str], log: Path) -> None:
    environment = dict(os.environ)
    paths = [str(HERE), str(HERE.parent / "src"), environment.get("PYTHONPATH", "")]
    environment |= {
        "PYTHONPATH": ":".join(filter(None, paths)),
        "NAVSIM_EXP_ROOT": str(log.parent / "exp"),
        "NUPLAN_MAPS_ROOT": str(log.parent),
        "OPENSCENE_DATA_ROOT": str(log.parent),
        "NAVSIM_DEVKIT_ROOT": environment.get(
            "NAVSIM_DEVKIT_ROOT", str(HERE.parent / "build/navsim")
        ),
        "HYDRA_FULL_ERROR": "1",
    }
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--agent", choices=("transfuser_agent", "ego_status_mlp_agent"), default="transfuser_agent"
    )
    parser.add_argument("--batches", default="64,128")
    parser.add_argument("--samples", type=int, default=6592, help="32 logs; one is held out")
    parser.add_argument("--sides", default="navsim:4,navsim:14,plain,default,max")
    parser.add_argument("--workers", type=int, default=8, help="reading threads on Convoy's side")
    parser.add_argument("--epochs", type=int, default=3, help="of Convoy's sides")
    parser.add_argument("--steps", type=int, default=0, help="of an epoch; 0: all")
    parser.add_argument("--navsim-steps", type=int, default=60, help="NAVSIM's one epoch")
    parser.add_argument("--compile-cache", help="kept from run to run")
    parser.add_argument("--folder", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--prepared", action="store_true", help="--folder holds the data already")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    results: list[tuple[str, int, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args, args.folder or Path(temporary))
        bench.folder.mkdir(parents=True, exist_ok=True)
        bench.prepare()
        for batch in map(int, args.batches.split(",")):
            for side in filter(None, args.sides.split(",")):
                level, _, detail = side.partition(":")
                if level == "navsim":
                    name, result = f"NAVSIM, {detail} workers", bench.navsim(batch, int(detail))
                else:
                    settings = [f"speed={level}", *(detail.split("+") if detail else [])]
                    name = f"Convoy, {' '.join(settings)}"
                    result = bench.convoy(batch, re.sub(r"\W", "-", side), settings)
                results.append((name, batch, result))
    rows = [_row(name, batch, result, results) for name, batch, result in results]
    record = {
        "benchmark": "training_speed",
        "arguments": vars(args) | {"folder": None},
        "results": {f"{name}, batch {batch}": result for name, batch, result in results},
    }
    columns = ("", "batch", "samples/s", "x NAVSIM", "waits", "10th step s", "GiB")
    print_report(f"training, {args.agent}, one GPU", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
