"""Writes the hash-locked requirements from pyproject.toml: `make lock`.

The CUDA set is what pip-compile resolves from the package index for all extras. The CPU set is the
same versions with torch's CPU build and without what only its CUDA build needs, so the two cannot
drift apart. PyTorch's CPU builds are not on the package index: their hashes are in
requirements/torch-cpu.sha256, in sha256sum's format, as PyTorch's own index publishes them (a new
torch needs new lines there).
"""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

PIP_TOOLS = "pip-tools==7.6.2"
ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "image" / "requirements"
HEADER = "# {variant} set. Written by `make lock` from pyproject.toml: edit that, not this.\n"
CUDA_ONLY = re.compile(r"(nvidia|cuda|triton)\b")
OTHER_SOURCES = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")


def blocks(text: str) -> dict[str, str]:
    """The requirements of a lock file: name -> its lines, with hashes and the comment on who needs
    it."""
    return {
        match[1]: match[0]
        for match in re.finditer(r"^([a-z0-9][a-z0-9._-]*)==.*\n(?: .*\n)*", text, re.M)
    }


def cpu_set(cuda: dict[str, str], torch_sums: str) -> dict[str, str]:
    """The CPU set's requirements, from the CUDA set's and the hashes of torch's CPU wheels."""
    wheels = [line.split() for line in torch_sums.splitlines() if line]
    versions = {wheel.split("-")[1] for _, wheel in wheels}
    locked = cuda["torch"].split()[0].removeprefix("torch==")
    if versions != {f"{locked}+cpu"}:
        sys.exit(
            f"torch-cpu.sha256 holds {', '.join(sorted(versions))}, but pyproject.toml asks for "
            f"{locked}: put the hashes of that version's CPU wheels there"
        )
    needed_by = cuda["torch"][cuda["torch"].index("    # via") :]
    hashes = " \\\n".join(
        f"    --hash=sha256:{digest}" for digest in sorted(digest for digest, _ in wheels)
    )
    cpu = {name: block for name, block in cuda.items() if not CUDA_ONLY.match(name)}
    return cpu | {"torch": f"torch=={locked}+cpu \\\n{hashes}\n{needed_by}"}


def compile_lock(target: Path) -> str:
    """What pip-compile makes of all extras, starting from the versions that `target` already
    has."""
    tools = ROOT / "build" / "lock-venv"
    if not (tools / "bin" / "pip-compile").exists():
        venv.create(tools, with_pip=True)
        subprocess.run([tools / "bin" / "pip", "install", "-qq", PIP_TOOLS], check=True)
    # Only the package index counts: hashes and versions of this machine's other sources are nobody
    # else's.
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_SOURCES}
    options = (
        "--quiet --all-extras --generate-hashes --strip-extras --allow-unsafe --no-header "
        "--no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host"
    )
    subprocess.run(
        [
            tools / "bin" / "pip-compile",
            *options.split(),
            f"--output-file={target}",
            "pyproject.toml",
        ],
        check=True,
        cwd=ROOT,
        env=environment | {"PIP_CONFIG_FILE": os.devnull},
    )
    return target.read_text()


def main() -> None:
    cuda = REQUIREMENTS / "cuda.txt"
    locked = blocks(compile_lock(cuda))
    torch_sums = (REQUIREMENTS / "torch-cpu.sha256").read_text()
    for variant, requirements in (("CUDA", locked), ("CPU", cpu_set(locked, torch_sums))):
        lines = "".join(block for _, block in sorted(requirements.items()))
        (REQUIREMENTS / f"{variant.lower()}.txt").write_text(HEADER.format(variant=variant) + lines)


if __name__ == "__main__":
    main()
