"""Builds the image, then from nothing once more, and compares what the two hold: `make
image-reproducible`."""

import subprocess
import sys
from pathlib import Path

from context import BUILD

IMAGE = BUILD / "convoy.sif"
AGAIN = BUILD / "reproducible" / "again.sif"


def build(*options: str) -> None:
    if subprocess.run(
        [sys.executable, Path(__file__).with_name("build_image.py"), "apptainer", *options]
    ).returncode:
        sys.exit(1)


def inside(image: Path, *command: str) -> str:
    return subprocess.run(
        ["apptainer", "exec", "--containall", "--no-home", image, "convoy", "image", *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def main() -> None:
    build(*sys.argv[1:], f"--output={IMAGE}")
    build(*sys.argv[1:], f"--output={AGAIN}", f"--cache={AGAIN.parent}", "--fresh")
    listings = {}
    for image in (IMAGE, AGAIN):
        print(f"{image}  {inside(image, 'digest').strip()}", flush=True)
        listings[image] = set(inside(image, "digest", "--files").splitlines())
    differing = sorted({line.split(maxsplit=2)[-1] for line in listings[IMAGE] ^ listings[AGAIN]})
    if differing:
        shown = "\n".join(f"  {path}" for path in differing[:20])
        sys.exit(f"the builds differ in {len(differing)} files:\n{shown}")
    for path in AGAIN.parent.iterdir():
        path.unlink()
    print("both builds hold the same")


if __name__ == "__main__":
    main()
