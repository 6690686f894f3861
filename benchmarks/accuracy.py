"""Displacement errors on held-out synthetic logs: constant velocity, the ego status alone, and the
built-in agent.

python benchmarks/accuracy.py --rounds 3

Each round has the demo's size, and a data set and an initialisation of its own.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from launch import torchrun, write_cache
from report import print_report

from convoy.commands.demo import BUILT_IN, SIZES

AGENTS = {
    "ego status only": "agent._target_=blind_agent.BlindAgent",
    "built-in agent": "agent._target_=convoy.agents.bev_fusion.BevFusionAgent",
}


def train(cache: Path, run_dir: Path, agent: str, seed: int) -> dict[str, float]:
    """`results.json` of one training of the demo's length on two ranks."""
    size = SIZES[BUILT_IN]
    torchrun(
        2,
        [
            "-m",
            "convoy.launch.rank",
            f"agent={BUILT_IN}",
            agent,
            f"cache_path={cache}",
            f"run_dir={run_dir}",
            f"seed={seed}",
            f"global_batch={size.global_batch}",
            f"trainer.params.max_epochs={size.epochs}",
            "data.val_fraction=0.2",
            "trainer.params.accelerator=cpu",
            "trainer.params.precision=32-true",
            "dataloader.params.num_workers=0",
        ],
    )
    return json.loads((run_dir / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    size = SIZES[BUILT_IN]
    rounds: list[dict[str, float]] = []
    for seed in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache = write_cache(Path(folder) / "cache", size.samples, size.logs, seed)
            results = {
                name: train(cache, Path(folder) / name, agent, seed)
                for name, agent in AGENTS.items()
            }
        ade = {name: result["ade"] for name, result in results.items()}
        rounds.append(
            {"constant velocity": results["built-in agent"]["ade_constant_velocity"]} | ade
        )
    rows: list[tuple[Any, ...]] = [
        (f"seed {seed}", *ade.values(), ade["built-in agent"] / ade["constant velocity"])
        for seed, ade in enumerate(rounds)
    ]
    ratio = statistics.median(row[-1] for row in rows)
    rows.append(
        ("median", *(statistics.median(ade[name] for ade in rounds) for name in rounds[0]), ratio)
    )
    record = {
        "benchmark": "accuracy",
        "arguments": vars(args),
        "ade_m": rounds,
        "ratio_median": ratio,
    }
    columns = ("ADE in metres", *rounds[0], "built-in / constant velocity")
    print_report("error on held-out logs, size of the demo", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
