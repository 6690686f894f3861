"""When a node uses the forward-compatibility libraries: the table, and a libcuda made on the
spot."""

import shutil
import subprocess
import sys

import pytest

from convoy.health import compat
from convoy.health.compat import decide

LIBRARIES = "580.95.05"


def never():
    raise AssertionError("the libraries are tried only where everything else allows them")


@pytest.mark.parametrize(
    ("driver", "cuda", "libraries", "trial", "use", "old", "reason"),
    [
        ("535.183.01", "13.0", LIBRARIES, 0, True, True, "580.95.05 are used"),
        ("550.54.15", "13.0", LIBRARIES, 0, True, True, "older than the 580 that CUDA 13.0 needs"),
        ("575.57.08", "13.0", LIBRARIES, 0, True, True, "are used"),
        ("580.65.06", "13.0", LIBRARIES, never, False, False, "new enough for CUDA 13.0"),
        ("580.159.04", "13.0", LIBRARIES, never, False, False, "new enough"),
        ("590.48.01", "13.0", LIBRARIES, never, False, False, "new enough"),
        ("550.54.15", "12.8", LIBRARIES, never, False, False, "new enough for CUDA 12.8"),
        ("550.54.15", "13.0", None, never, False, True, "there are no forward-compat"),
        ("550.54.15", "13.0", "570.133.20", never, False, True, "and so are the forward"),
        ("550.54.15", "13.0", LIBRARIES, 804, False, True, "not allowed on this GPU .error 804"),
        ("470.57.02", "13.0", LIBRARIES, 803, False, True, "so old a driver .error 803"),
        ("550.54.15", "13.0", LIBRARIES, 100, False, True, "see no GPU"),
        ("550.54.15", "13.0", LIBRARIES, 999, False, True, "fail with error 999"),
        ("550.54.15", "13.0", LIBRARIES, None, False, True, "cannot be loaded"),
        (None, "13.0", LIBRARIES, never, False, False, "no NVIDIA driver"),
        ("550.54.15", None, LIBRARIES, never, False, False, "cpu variant"),
        ("550.54.15", "99.0", LIBRARIES, never, False, False, "not known which driver CUDA 99.0"),
    ],
)
def test_the_decision(driver, cuda, libraries, trial, use, old, reason):
    import re

    asked = trial if callable(trial) else lambda: trial
    choice = decide(driver, cuda, libraries, asked)
    assert (choice.use, choice.old) == (use, old) and re.search(reason, choice.reason)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
            "580.159.04",
        ),
        ("", None),
    ],
)
def test_the_version_of_a_driver(text, version):
    assert compat.driver_version(text) == version


def test_the_version_of_cuda_is_read_without_importing_torch():
    import torch

    assert compat.cuda_version() == torch.version.cuda
    code = "import sys; from convoy.health import compat; compat.choose()"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.fixture
def libraries(tmp_path):
    """A libcuda whose cuInit returns 804."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source = tmp_path / "cuda.c"
    source.write_text("int cuInit(unsigned flags) { return 804; }\n")
    folder = tmp_path / "compat"
    folder.mkdir()
    library = folder / f"libcuda.so.{LIBRARIES}"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    (folder / "libcuda.so.1").symlink_to(library.name)
    return folder


def test_the_libraries_are_tried_in_a_process_of_their_own(libraries, tmp_path, monkeypatch):
    assert compat.libraries_version(libraries) == LIBRARIES
    assert compat.attempt(libraries) == 804 and compat.attempt(tmp_path) is None
    monkeypatch.setenv("LD_LIBRARY_PATH", "/a:/b")
    assert compat.with_libraries(libraries) == f"{libraries}:/a:/b"
    assert not compat.in_use(libraries)
    monkeypatch.setenv("LD_LIBRARY_PATH", compat.with_libraries(libraries))
    assert compat.in_use(libraries)


def test_what_the_entrypoint_is_told(libraries, tmp_path, monkeypatch, capsys):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n")
    monkeypatch.setattr(compat, "DRIVER", driver)
    monkeypatch.setattr(compat, "LIBRARIES", libraries)
    monkeypatch.setattr(compat, "cuda_version", lambda: "13.0")
    for code, path in ((0, compat.with_libraries(libraries) + "\n"), (804, "")):
        monkeypatch.setattr(compat, "attempt", lambda folder, code=code: code)
        monkeypatch.setattr(compat.choose, "__defaults__", (libraries,))
        compat.main()
        printed = capsys.readouterr()
        assert printed.out == path and printed.err.startswith("convoy: driver 550.54.15 is older")
    monkeypatch.setattr(compat, "cuda_version", lambda: "12.8")
    compat.main()
    assert capsys.readouterr() == ("", "")
