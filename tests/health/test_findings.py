"""What the doctor says of machines that are not at hand: drivers too old, GPUs missing, no room, no
rights."""

import json

import pytest

from convoy.commands import __main__ as cli
from convoy.health import environment, gpu, host, sources
from convoy.health.finding import Status, examine

OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    "GCC version: gcc 12.2.0\n"
)


@pytest.mark.parametrize(
    ("text", "cuda", "loads", "needed", "expected"),
    [
        (OPEN, "13.0", True, True, ("ok", "580.159.04 (CUDA 13.0 needs 580 or newer)")),
        (
            OLD,
            "13.0",
            True,
            True,
            ("fail", "550.54.15 is too old: torch's CUDA 13.0 needs driver 580 or newer"),
        ),
        (OLD, "12.8", True, True, ("ok", "550.54.15")),
        (OPEN, "13.0", False, True, ("fail", "but not in here: start the container with --nv")),
        ("", "13.0", False, True, ("fail", "no NVIDIA driver on this machine")),
        (
            "",
            "13.0",
            False,
            False,
            ("warn", "no NVIDIA driver on this machine (on a login node that is usual)"),
        ),
        (OPEN, None, False, True, ("fail", "this is the cpu variant: GPUs need the cuda one")),
        ("", None, False, False, ("ok", "not needed")),
    ],
)
def test_the_driver(text, cuda, loads, needed, expected):
    status, found = gpu.judge_driver(text, cuda, loads, needed)
    assert status == expected[0] and expected[1] in found


def test_missing_gpus_end_with_3_and_one_line(capsys):
    assert cli.main(["doctor", "--gpus", "4"]) == 3
    printed = capsys.readouterr()
    assert "convoy doctor: GPUs: 4 expected, 0 seen (none)" in printed.err
    assert "convoy doctor" in printed.out  # the table


def test_the_gpus_that_slurm_gave_are_expected(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert cli.main(["doctor", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert {finding["name"] for finding in report["findings"] if finding["status"] == "fail"} >= {
        "GPUs"
    }


def test_modules_from_elsewhere_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch):
    without_pytest = [path for path in environment.sys.path if "-packages" in path]
    monkeypatch.setattr(environment.sys, "path", without_pytest)
    assert environment.examine_isolation()[0] == "ok"
    monkeypatch.setattr(environment.sys, "path", [str(tmp_path), *without_pytest])
    status, found = environment.examine_isolation()
    assert status == "warn" and str(tmp_path) in found
    monkeypatch.setattr(environment, "read_manifest", lambda: {"variant": "cpu"})
    assert environment.examine_isolation()[0] == "fail"


def test_a_package_that_is_not_the_built_one_is_named(monkeypatch: pytest.MonkeyPatch):
    manifest = {"python": {"numpy": "1.0", "rich": "15.0.0", "gone": "2"}, "lock": "sha256:0"}
    monkeypatch.setattr(environment, "read_manifest", lambda: manifest)
    status, found = environment.examine_packages()
    assert status == "fail" and "numpy 2.4.6 instead of 1.0; gone missing instead of 2" in found


def test_a_small_dev_shm_is_told(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: type("Usage", (), {"total": 64 << 20}))
    assert host.examine_shared_memory() == (
        "warn",
        "64 MiB: too little for data loader workers. Apptainer: --bind /dev/shm; Docker: "
        "--shm-size=8g",
    )


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    status, found = host.examine_writable(tmp_path / "file" / "run", Status.FAIL, "elsewhere")
    assert status == "fail" and found.endswith("Not a directory: elsewhere")
    assert host.examine_writable(tmp_path / "new" / "run", Status.FAIL, "")[0] == "ok"
    assert not (tmp_path / "new").exists()


def test_little_room_for_temporary_files_is_not_rounded_away(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    """--containall gives a /tmp of 64 MiB."""
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 62 << 20}))
    assert host.examine_writable(tmp_path, Status.FAIL, "") == ("ok", f"{tmp_path}, 62 MiB free")


def test_a_check_that_breaks_is_a_failure_of_its_line():
    def broken():
        raise OSError("libtorch.so: cannot open shared object file")

    found = list(examine({"torch": broken, "CPUs": lambda: (Status.OK, "2 usable")}))
    assert found[0].status is Status.FAIL
    assert found[0].found == "OSError: libtorch.so: cannot open shared object file"
    assert found[1].status is Status.OK  # the others go on


def test_a_navsim_without_yaml_is_told(tmp_path, navsim_tree, monkeypatch: pytest.MonkeyPatch):
    """What a wheel built of NAVSIM installs."""
    (tmp_path / "navsim").mkdir()
    (tmp_path / "navsim/__init__.py").touch()
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(environment.sys.modules, "navsim", raising=False)
    status, found = sources.examine_source("navsim", "navsim")
    assert status == "fail" and "holds no YAML file" in found
