"""The forward-compatibility libraries on their way into the image."""

import io
import tarfile

import pytest
from compat import MAGIC, CompatError, lay_out

FOLDER = "./usr/local/cuda-13.0/compat"


def package(path, members, suffix="xz"):
    """A .deb as dpkg writes one: members of odd and even length."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{suffix}") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    content = MAGIC
    named = {
        "debian-binary": b"2.0\n",
        "control.tar": b"odd",
        f"data.tar.{suffix}": data.getvalue(),
    }
    for name, part in named.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(part):<10}`\n".encode()
        content += part + b"\n" * (len(part) % 2)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_out_of_nvidias_package(tmp_path, suffix):
    members = {
        f"{FOLDER}/libcuda.so.580.95.05": b"cuda",
        f"{FOLDER}/libcuda.so.1": "libcuda.so.580.95.05",
        f"{FOLDER}/libnvidia-nvvm.so.4": b"nvvm",
        "./usr/share/doc/cuda-compat-13-0/copyright": b"text",
        f"{FOLDER}/lib-out.so": "../../../../etc/passwd",
    }
    lay_out(package(tmp_path / "x.deb", members, suffix), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "libcuda.so.1",
        "libcuda.so.580.95.05",
        "libnvidia-nvvm.so.4",
    ]
    assert (tmp_path / "out/libcuda.so.1").read_bytes() == b"cuda"


def test_out_of_a_folder(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "libcuda.so.580.95.05").write_bytes(b"cuda")
    (given / "libcuda.so.1").symlink_to("libcuda.so.580.95.05")
    (given / "README").write_text("")
    lay_out(given, tmp_path / "out")
    assert (tmp_path / "out/libcuda.so.1").is_symlink()
    assert not (tmp_path / "out/README").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("an rpm"), "is neither a folder nor a .deb"),
        (lambda path: path.mkdir(), "holds no libcuda.so.1: give NVIDIA's package"),
        (lambda path: package(path, {"./x": b""}), "holds no libcuda.so.1"),
        (lambda path: path.write_bytes(MAGIC), "holds no data.tar.gz or data.tar.xz"),
    ],
)
def test_something_else_is_named(tmp_path, make, told):
    make(tmp_path / "given")
    with pytest.raises(CompatError, match=f"COMPAT=.*given {told}"):
        lay_out(tmp_path / "given", tmp_path / "out")
