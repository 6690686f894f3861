"""Time to the first optimiser step from starting torchrun, against a bare script that imports torch
and Lightning; and the time of host commands against the bare interpreter.

    python benchmarks/startup.py --processes 2
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launch import Size, bare, convoy, write_cache
from report import print_report

HOST_COMMANDS = (("convoy", "--help"), ("convoy", "synth", "--help"), ("convoy", "check", "--help"))


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder) / "cache", 32, 4)
        size = Size(cache, 8, 2, args.processes, 0, args.accelerator, window=1)
        bare(size)  # fills the page cache for both sides
        pairs = [(bare(size).first_step, convoy(size).first_step) for _ in range(args.rounds)]
    theirs, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    rows = [("torchrun to first optimiser step", theirs, ours, ratio)]
    python = statistics.median(seconds([sys.executable, "-c", "pass"]) for _ in range(args.rounds))
    commands = {}
    for name, *arguments in HOST_COMMANDS:
        command = [str(Path(sys.executable).parent / name), *arguments]
        commands[" ".join((name, *arguments))] = statistics.median(
            seconds(command) for _ in range(args.rounds)
        )
    rows += [(name, python, took, took / python) for name, took in commands.items()]
    record = {
        "benchmark": "startup",
        "arguments": vars(args),
        "bare_s": [pair[0] for pair in pairs],
        "convoy_s": [pair[1] for pair in pairs],
        "ratio_median": ratio,
        "host_commands_s": commands,
    }
    title = f"seconds (median of {args.rounds}), {args.processes} process(es)"
    print_report(title, ("", "bare", "convoy", "ratio"), rows, record, args.json)


if __name__ == "__main__":
    main()
