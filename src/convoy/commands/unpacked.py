"""`convoy unpacked`: asked by slurm/unpack.sh where on this node's disk the image belongs."""

import argparse
import os
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.launch.unpacked import folder_name, require_room, use
from convoy.run.image import read_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", type=Path, help="the node's folder for unpacked images")
    parser.add_argument("--shown", help="what messages call it")
    parser.add_argument(
        "--room", action="store_true", help="also check that there is room for the image"
    )


def run(args: argparse.Namespace) -> int:
    """Print the folder's name below `disk`."""
    manifest = read_manifest()
    if manifest is None:
        raise ConvoyError("There is no image here: `convoy unpacked` is for slurm/unpack.sh.")
    name = folder_name(args.disk, manifest["digest"], args.shown or os.fspath(args.disk))
    if args.room:
        require_room(args.disk / name)
    use(args.disk / name)
    print(name)
    return ExitCode.FINISHED
