"""slurm/container.sh up to Apptainer's own arguments; the testbed has the real Apptainer."""

import csv
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints what it was called with, and its environment.
APPTAINER = '#!/bin/bash\nprintf "%s\\0" "$@" --; env -0\n'


@pytest.fixture
def call(tmp_path):
    """Arguments and variables that Apptainer gets."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apptainer").write_text(APPTAINER)
    (tmp_path / "bin/apptainer").chmod(0o755)

    def called(folder, **variables):
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "NAVSIM_EXP_ROOT": f"{folder}/exp",
            "CONVOY_IMAGE": f"{folder}/image.sif",
        }
        done = subprocess.run(
            [ROOT / "slurm/container.sh", "check", "a b", "$(touch ran)"],
            cwd=folder,
            env=environment | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        arguments, variables = done.stdout.split("\0--\0", 1)
        seen = dict(entry.split("=", 1) for entry in variables.split("\0") if entry)
        return arguments.split("\0"), seen

    return called


def mounts(arguments):
    """Source and destination of each --mount, read as Apptainer does: CSV, then name=value."""
    given = [each.removeprefix("--mount=") for each in arguments if each.startswith("--mount=")]
    fields = [dict(f.split("=", 1) for f in next(csv.reader([mount]))) for mount in given]
    assert all(each["type"] == "bind" for each in fields)
    return {each["source"]: each["destination"] for each in fields}


@pytest.mark.parametrize("name", ["plain", "a,b:c", 'quote " and space', "dollar $HOME `x`", "é=ü"])
def test_folders_of_any_name_are_mounted(call, tmp_path, name):
    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    arguments, _ = call(folder, CONVOY_BIND=f"{folder}/data", NAVSIM_DEVKIT_ROOT=f"{folder}/fork")
    assert mounts(arguments) == {
        f"{folder}/exp": f"{folder}/exp",
        str(folder): str(folder),
        f"{folder}/data": f"{folder}/data",
        f"{folder}/fork": "/opt/navsim",
    }
    assert f"--pwd={folder}" in arguments and "--no-eval" in arguments
    assert arguments[-5:] == [
        f"{folder}/image.sif",
        "/opt/convoy/entrypoint/run.sh",
        "check",
        "a b",
        "$(touch ran)",
    ]


def test_relative_folders_are_those_of_the_submit_folder(call, tmp_path):
    arguments, _ = call(tmp_path / "x", NAVSIM_EXP_ROOT="exp", CONVOY_COMPAT="../compat")
    folder = tmp_path / "x"
    assert mounts(arguments) == {
        f"{folder}/exp": f"{folder}/exp",
        str(folder): str(folder),
        f"{folder}/../compat": "/opt/convoy/compat",
    }


def test_several_binds_stay_as_they_were_written(call, tmp_path):
    arguments, _ = call(tmp_path / "x", CONVOY_BIND="/scratch,/data:/mnt:ro")
    assert "--bind=/scratch,/data:/mnt:ro" in arguments


def test_variables_cross_as_they_are(call, tmp_path):
    values = {
        "NCCL_DEBUG": "$(touch ran) `touch ran` $HOME",
        "HF_TOKEN": "\"double\" 'single' \\",
        "CONVOY_OVERRIDES": "a=1\nb=2",
        "https_proxy": "http://lower:1",
        "HTTPS_PROXY": "http://upper:1",
        "NO_PROXY": "localhost",
        "ALL_PROXY": "socks5://all",
    }
    _, seen = call(tmp_path / "x", **values, SECRET="stays")
    assert {name: seen[f"APPTAINERENV_{name}"] for name in values} == values
    assert "APPTAINERENV_SECRET" not in seen and not (tmp_path / "x/ran").exists()
