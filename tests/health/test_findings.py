"""What the doctor says of machines that are not at hand: drivers too old, GPUs missing, no room, no
rights."""

import json
import re

import pytest

from convoy.commands import __main__ as cli
from convoy.health import compat, environment, gpu, host, sources
from convoy.health.finding import Status, examine

NEW = compat.Choice(False, "driver 580.159.04 is new enough for CUDA 13.0")
OLD = compat.Choice(
    False, "driver 550.54.15 is older than the 580 that CUDA 13.0 needs, and …", True
)
BRIDGED = compat.Choice(True, "driver 550.54.15 is older …; the libraries are used", True)


@pytest.mark.parametrize(
    ("choice", "in_use", "cuda", "there", "loads", "needed", "expected"),
    [
        (NEW, False, True, True, True, True, ("ok", "driver 580.159.04 is new enough")),
        (OLD, False, True, True, True, True, ("fail", "Ask for other nodes, or .*COMPAT=FILE")),
        (BRIDGED, True, True, True, True, True, ("ok", "the libraries are used$")),
        (BRIDGED, False, True, True, True, True, ("warn", "by entrypoint/run.sh only")),
        (NEW, False, True, True, False, True, ("fail", "start the container with --nv")),
        (NEW, False, True, False, False, True, ("fail", "no NVIDIA driver on this machine")),
        (NEW, False, True, False, False, False, ("warn", "usual on a login node")),
        (NEW, False, False, True, False, True, ("fail", "cpu variant: GPUs need the cuda one")),
        (NEW, False, False, False, False, False, ("ok", "not needed")),
    ],
)
def test_the_driver(choice, in_use, cuda, there, loads, needed, expected):
    status, found = gpu.judge_driver(choice, in_use, cuda, there, loads, needed)
    assert status == expected[0] and re.search(expected[1], found)


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
