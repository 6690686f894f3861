"""Builds the image twice from nothing and compares what the two hold: `make image-reproducible`."""

import subprocess
import sys
from pathlib import Path

from context import BUILD

FOLDER = BUILD / "reproducible"


def inside(image: Path, *command: str) -> str:
    return subprocess.run(
        ["apptainer", "exec", "--containall", "--no-home", image, "convoy", "image", *command],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def main() -> None:
    images = [FOLDER / "first.sif", FOLDER / "second.sif"]
    for image in images:
        build = [sys.executable, Path(__file__).with_name("build.py"), "apptainer", *sys.argv[1:]]
        if subprocess.run([*build, "--fresh", f"--output={image}", f"--cache={FOLDER}"]).returncode:
            sys.exit(1)
    digests = [inside(image, "digest").strip() for image in images]
    for image, digest in zip(images, digests, strict=True):
        print(f"{image.name:<11} {digest}")
    if len(set(digests)) == 1:
        print("both builds hold the same")
        return
    listings = [set(inside(image, "digest", "--files").splitlines()) for image in images]
    differing = sorted({line.split(maxsplit=2)[-1] for line in listings[0] ^ listings[1]})
    shown = "\n".join(f"  {path}" for path in differing[:20])
    sys.exit(f"the builds differ in {len(differing)} files:\n{shown}")


if __name__ == "__main__":
    main()
