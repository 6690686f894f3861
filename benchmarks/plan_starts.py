"""How well `sbatch --test-only`, which `convoy plan` asks, foretells the start of jobs.

Fills the partitions of a real cluster with a backlog of jobs of one and two nodes that use between
a third and all of their one-minute limits, then submits probes one after another and prints for
each the predicted and the actual wait, and how many actual waits were in the range that the plan
shows. Needs a SLURM of its own (the testbed's, for example): it cancels its jobs at the end.

    benchmarks/plan_starts.py --partition l40s_public --account users [--probes 20] [--json FILE]
"""

import argparse
import json
import random
import subprocess
import time
from datetime import datetime
from pathlib import Path

from convoy.host import cluster
from convoy.host.starts import Wait


def job(partition: str, account: str, nodes: int, seconds: float, name: str) -> list[str]:
    return [
        "sbatch",
        f"--partition={partition}",
        f"--account={account}",
        f"--nodes={nodes}",
        "--gpus-per-node=4",
        "--time=1",
        "--output=/dev/null",
        f"--job-name={name}",
        f"--wrap=sleep {seconds:.0f}",
    ]


def started(jobs: list[str]) -> dict[str, datetime]:
    """Start times of those that have started, of the ones that SLURM still knows."""
    found = {}
    for name in jobs:
        facts = cluster.job_facts(name)
        if facts.get("JobState") in {"RUNNING", "COMPLETED", "COMPLETING", "TIMEOUT"}:
            found[name] = datetime.fromisoformat(facts["StartTime"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--partition", required=True)
    parser.add_argument("--account", required=True)
    parser.add_argument("--probes", type=int, default=20)
    parser.add_argument("--backlog", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dice = random.Random(0)
    where = (args.partition, args.account)
    for _ in range(args.backlog):
        command = job(*where, dice.choice([1, 1, 2]), dice.uniform(20, 60), "backlog")
        cluster.submit(command, {})
    time.sleep(5)
    probes: list[tuple[str, float, datetime]] = []
    waiting: dict[str, datetime] = {}
    try:
        for number in range(args.probes):
            command = job(*where, 1 + number % 2, dice.uniform(20, 60), "probe")
            answer = cluster.test_only([command])[0]
            now = datetime.now()
            if answer.start is None:
                raise SystemExit(f"SLURM would not take the probe: {answer.refusal}")
            predicted = max(0.0, (answer.start - now).total_seconds())
            probes.append((cluster.submit(command, {}), predicted, now))
            time.sleep(6)
            waiting |= started([name for name, _, _ in probes if name not in waiting])
        while len(waiting) < len(probes):
            time.sleep(5)
            waiting |= started([name for name, _, _ in probes if name not in waiting])
    finally:
        subprocess.run(["scancel", "--name=backlog,probe"])
    rows = []
    for name, predicted, submitted in probes:
        actual = max(0.0, (waiting[name] - submitted).total_seconds())
        range_ = Wait.of(predicted, "")
        rows.append((predicted, actual, range_.low <= actual <= range_.high))
        print(f"job {name}: predicted {predicted:5.0f} s, actual {actual:5.0f} s")
    inside = sum(row[2] for row in rows)
    early = sum(actual < predicted for predicted, actual, _ in rows)
    print(f"{inside} of {len(rows)} in the plan's range; {early} started earlier than predicted")
    if args.json:
        content = {
            "slurm": cluster.run("sinfo", "--version").strip(),
            "waits_s": [row[:2] for row in rows],
            "in_range": inside,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
