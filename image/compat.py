"""NVIDIA's forward-compatibility libraries for the image: out of the package cuda-compat-*, or out
of a folder. Standard library only."""

import io
import shutil
import tarfile
from pathlib import Path, PurePosixPath

MAGIC = b"!<arch>\n"


class CompatError(Exception):
    """What is wrong with the libraries that were given, and what to give."""


def lay_out(given: Path, target: Path) -> None:
    """Put the libraries of `given`, a .deb file or a folder, into `target`. Raises CompatError."""
    target.mkdir(parents=True, exist_ok=True)
    if given.is_dir():
        for path in sorted(given.glob("lib*.so*")):
            shutil.copy2(path, target / path.name, follow_symlinks=False)
    else:
        with _content(given) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if "/compat/" not in member.name or not name.startswith("lib"):
                    continue
                if member.issym() and "/" not in member.linkname:
                    (target / name).symlink_to(member.linkname)
                elif member.isfile() and (content := archive.extractfile(member)) is not None:
                    (target / name).write_bytes(content.read())
                    (target / name).chmod(0o644)
    if not (target / "libcuda.so.1").exists():
        raise CompatError(
            f"COMPAT={given} holds no libcuda.so.1: give NVIDIA's package cuda-compat-*.deb, or a "
            "folder with its libraries (of an .rpm: rpm2cpio FILE | cpio -id)"
        )


def _content(package: Path) -> tarfile.TarFile:
    """A .deb is an ar archive: members of a 60-byte header and an even number of bytes."""
    data = package.read_bytes()
    if not data.startswith(MAGIC):
        raise CompatError(f"COMPAT={package} is neither a folder nor a .deb package")
    at = len(MAGIC)
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        if name in ("data.tar", "data.tar.gz", "data.tar.xz"):
            return tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size]))
        at += 60 + size + size % 2
    raise CompatError(
        f"COMPAT={package} holds no data.tar.gz or data.tar.xz: unpack it (dpkg-deb -x FILE DIR) "
        "and give the folder with libcuda.so.1"
    )
