"""`convoy image`: what the image that this runs in is made of."""

import argparse
import json
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.run.image import content_digest, entries, read_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    digest = commands.add_parser("digest", help="digest of names, modes and contents, computed now")
    digest.add_argument(
        "--files", action="store_true", help="one line for each file instead: content, mode, path"
    )
    commands.add_parser(
        "manifest", help="what the build wrote: commit, lock, NAVSIM, digest, all packages (JSON)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the digest, the files or the manifest."""
    manifest = read_manifest()
    if manifest is None:
        raise ConvoyError(
            "There is no image here. Inside of one: apptainer exec build/convoy.sif convoy image "
            "digest"
        )
    if args.what == "manifest":
        print(json.dumps(manifest, indent=1))
        return ExitCode.FINISHED
    if args.files:
        for path, mode, content in entries(Path("/")):
            print(f"{content:<64} {mode:>6} {path}")
        return ExitCode.FINISHED
    digest = content_digest(Path("/"))
    print(digest)
    if digest != manifest["digest"]:
        raise ConvoyError(
            f"The build wrote {manifest['digest']}: something is bound over the image's files (as "
            "--nv does), or they were changed (`convoy image digest --files` lists them)."
        )
    return ExitCode.FINISHED
