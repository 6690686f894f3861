"""`make image` from nothing and after a change under src/, compressed with zstd and with gzip.

    python benchmarks/image_build.py --variant cuda python benchmarks/image_build.py --builder
    testbed/apptainer -- --base build/base.tar --ca build/ca.pem

Builds in a clone under build/, so that the checkout's own image and kept dependencies stay.
Downloads are in the time. A build deletes what it unpacked, and for a minute after so many files
were deleted ext4 takes two to three times as long to create new ones (fs/ext4/ialloc.c,
recently_deleted), so the benchmark waits that long before each. What follows `--` goes to
image/build_image.py.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from report import print_report

ROOT = Path(__file__).resolve().parents[1]
SETTLE_S = 75  # more than ext4's RECENCY_MIN, 60 s, which holds once the inodes are written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compressions", default="zstd,gzip")
    parser.add_argument(
        "--builder", default="", help="command that runs its arguments where Apptainer is"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("options", nargs="*", help="of image/build_image.py")
    args = parser.parse_args()

    clone = ROOT / "build" / "benchmark"
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    for name in ("navsim", "nuplan-devkit"):
        shutil.copytree(ROOT / "build" / name, clone / "build" / name, symlinks=True)
    (clone / "build").chmod(0o777)  # the builder may be another user
    image = clone / "build" / "convoy.sif"

    def build(compression: str, *options: str) -> float:
        command = [
            "python3",
            str(clone / "image/build_image.py"),
            "apptainer",
            f"--variant={args.variant}",
        ]
        command += [
            f"--compression={compression}",
            f"--output={image}",
            f"--cache={clone}/build/cache",
            *options,
        ]
        os.sync()
        time.sleep(SETTLE_S)
        began = time.monotonic()
        subprocess.run(
            [*shlex.split(args.builder), *command, *args.options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - began

    builds = {}
    for compression in args.compressions.split(","):
        cold = build(compression, "--fresh")
        size = image.stat().st_size
        with (clone / "src/convoy/__init__.py").open("a") as source:
            source.write(f"# as if edited: {compression}\n")
        builds[compression] = {
            "cold_s": cold,
            "after_src_change_s": build(compression),
            "image_bytes": size,
        }
    shutil.rmtree(clone, ignore_errors=True)
    rows = [
        (name, result["cold_s"], result["after_src_change_s"], result["image_bytes"] / 1e9)
        for name, result in builds.items()
    ]
    record = {"benchmark": "image_build", "arguments": {"variant": args.variant}, "builds": builds}
    columns = ("compression", "from nothing, s", "after a change under src/, s", "image, GB")
    print_report(f"builds of the {args.variant} image", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
