"""A run directory on a real NFS, seen from two nodes: in a virtual machine, whose kernel has NFS
whatever this one's has. `python3 testbed/nfs/machine.py [VERSION…]` prints what it found.

Needs root, mmdebstrap, cpio and qemu-system-x86 (no KVM); takes two minutes, or more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEEDED = ("qemu-system-x86_64", "mmdebstrap", "cpio")
PACKAGES = (
    "e2fsprogs",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "nfs-common",
    "nfs-kernel-server",
    "python3",
    "rpcbind",
)
VERSIONS = ("3", "4.2")
RESULT = "RESULT "
LIMIT = 900.0  # seconds


def missing() -> list[str]:
    """What this machine lacks."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


def results(cache: Path, versions: Sequence[str] = VERSIONS) -> list[dict[str, Any]]:
    """What guest.py found with each version of NFS. `cache` keeps the machine's file system.

    Raises RuntimeError with the machine's last words where it did not get that far.
    """
    with tempfile.TemporaryDirectory(prefix="convoy-nfs-") as name:
        folder = Path(name)
        initrd = folder / "initrd"
        kernel, base = _base(cache)
        with initrd.open("wb") as file:
            file.write(base.read_bytes())
            file.write(_archive(_own_files(folder / "own")))
        words = " ".join(("console=ttyS0 quiet edd=off panic=-1 rdinit=/init --", *versions))
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"]
        command += ["-m", "2560", "-smp", "2", "-display", "none", "-monitor", "none"]
        command += ["-serial", "stdio", "-no-reboot", "-nic", "none"]
        command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", words]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False
            )
            out, errors = done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            out, errors = late.stdout or b"", late.stderr or b""
    said = out.decode(errors="replace").splitlines()
    found = [json.loads(line.removeprefix(RESULT)) for line in said if line.startswith(RESULT)]
    if len(found) < len(versions):
        last = [*said[-15:], *errors.decode(errors="replace").splitlines()[-5:]]
        raise RuntimeError("the machine found nothing; its last words:\n" + "\n".join(last))
    return found


def _base(cache: Path) -> tuple[Path, Path]:
    """Debian's kernel, and its packages as an archive for the kernel; made once."""
    which = f"{zlib.crc32(' '.join(PACKAGES).encode()):08x}"
    kernel, base = cache / f"nfs-kernel-{which}", cache / f"nfs-packages-{which}.cpio"
    if not (kernel.is_file() and base.is_file()):
        cache.mkdir(parents=True, exist_ok=True)
        with _unpacked_packages() as root:
            shutil.copy(next(root.glob("boot/vmlinuz-*")), kernel)
            shutil.rmtree(root / "boot")
            base.with_suffix(".partial").write_bytes(_archive(root))
        base.with_suffix(".partial").replace(base)
    return kernel, base


@contextlib.contextmanager
def _unpacked_packages() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="convoy-nfs-") as name:
        root = Path(name) / "root"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        # An intercepting cache may serve a Release file that is past its date.
        command += ['--aptopt=Acquire::Check-Valid-Until "false"', "bookworm", str(root)]
        mirror = os.environ.get("DEBIAN_MIRROR")
        subprocess.run([*command, *([mirror] if mirror else [])], check=True)
        yield root


def _own_files(folder: Path) -> Path:
    """The checkout's part: what the machine runs."""
    shutil.copytree(ROOT / "src" / "convoy", folder / "convoy" / "convoy")
    for name in ("init", "guest.py"):
        shutil.copy(HERE / name, folder / name)
    return folder


def _archive(folder: Path) -> bytes:
    names = subprocess.run(["find", ".", "-print0"], cwd=folder, capture_output=True, check=True)
    command = ["cpio", "--null", "--create", "--format=newc", "--quiet"]
    return subprocess.run(
        command, cwd=folder, input=names.stdout, capture_output=True, check=True
    ).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=list(VERSIONS), help="of NFS (%(default)s)")
    args = parser.parse_args()
    if missing():
        print(f"nfs: this machine lacks {', '.join(missing())}", file=sys.stderr)
        return 1
    try:
        for found in results(ROOT / "build", args.versions):
            print(json.dumps(found, indent=1))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"nfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
