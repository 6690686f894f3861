"""What running from the image costs, against the same packages outside of it; and what the image's
size is made of.

    make image && python benchmarks/image.py python benchmarks/image.py --apptainer
    "testbed/apptainer apptainer"     # Apptainer in a container

Outside is the environment that runs this. "First" is in a container that was just started: its
mount has nothing in its cache yet; "again" is the second time in the same container.

Each figure is a process's whole life, measured from inside the container where it runs in one, so
that starting a container is a line of its own.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import print_report

# As programs, so that both sides time the same thing.
PROGRAMS = {
    "import torch": ["python", "-c", "import torch"],
    "convoy train --help": ["convoy", "train", "--help"],
}
STOPWATCH = """
import json, subprocess, sys, time
took = {}
for when in ("first", "again"):  # a container's mount begins without anything in its cache
    for name, command in json.loads(sys.argv[1]).items():
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took[f"{name}, {when}"] = time.perf_counter() - began
print(json.dumps(took))
"""
WEIGHTS = """
import collections, importlib.metadata, json
sizes = collections.Counter()
for item in importlib.metadata.distributions():
    for file in item.files or ():
        path = file.locate()
        if path.is_file():
            sizes[item.name] += path.stat().st_size
print(json.dumps(sizes.most_common()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=Path("build/convoy.sif"))
    parser.add_argument(
        "--apptainer", default="apptainer", help="how it is called here (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    inside = [
        *shlex.split(args.apptainer),
        "exec",
        "--containall",
        "--no-home",
        "--pwd=/",
        str(args.image),
    ]
    folder = Path(sys.executable).parent
    outside = {name: [str(folder / program), *rest] for name, (program, *rest) in PROGRAMS.items()}

    def output(*command: str) -> str:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def round_inside() -> tuple[dict[str, float], float]:
        began = time.perf_counter()
        took = json.loads(output(*inside, "python", "-c", STOPWATCH, json.dumps(PROGRAMS)))
        return took, time.perf_counter() - began - sum(took.values())

    def round_outside() -> dict[str, float]:
        return json.loads(output(sys.executable, "-c", STOPWATCH, json.dumps(outside)))

    round_inside(), round_outside()  # fill the page cache
    pairs = [(round_outside(), *round_inside()) for _ in range(args.rounds)]
    startup: dict[str, dict[str, Any]] = {}
    for name in pairs[0][0]:
        startup[name] = {
            "outside_s": [theirs[name] for theirs, _, _ in pairs],
            "inside_s": [ours[name] for _, ours, _ in pairs],
            "ratio_median": statistics.median(
                ours[name] / theirs[name] for theirs, ours, _ in pairs
            ),
        }
    start = statistics.median(rest for _, _, rest in pairs)
    packages = dict(json.loads(output(*inside, "python", "-c", WEIGHTS)))

    rows: list[tuple[Any, ...]] = [
        (
            name,
            statistics.median(sides["outside_s"]),
            statistics.median(sides["inside_s"]),
            sides["ratio_median"],
        )
        for name, sides in startup.items()
    ]
    rows.append(("start of a container", "", start, ""))
    rows.append((f"size of {args.image.name}, GB", "", args.image.stat().st_size / 1e9, ""))
    rows += [
        (f"  {name}, GB unpacked", "", size / 1e9, "") for name, size in list(packages.items())[:10]
    ]
    record = {
        "benchmark": "image",
        "arguments": vars(args) | {"image": str(args.image)},
        "startup": startup,
        "container_start_s": start,
        "image_bytes": args.image.stat().st_size,
        "unpacked_bytes_by_package": packages,
    }
    title = f"seconds (median of {args.rounds} alternating rounds), sizes"
    print_report(title, ("", "outside", "inside", "ratio"), rows, record, args.json)


if __name__ == "__main__":
    main()
