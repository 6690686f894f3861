"""One file of settings, read alike by the launch (bash) and the host tools (Python)."""

import os
import subprocess
from pathlib import Path

import pytest

from convoy.errors import ConvoyError
from convoy.host import site

ROOT = Path(__file__).parents[2]
TEXT = """\
A comment, with = in it.
SBATCH_PARTITION=from_file
SBATCH_ACCOUNT=users
CONVOY_IMAGE=/from/file.sif
CONVOY_OVERRIDES=a=1 b=[x,y]
NCCL_SOCKET_IFNAME=ib0=
  indented=ignored
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "site.conf"
    path.write_text(TEXT)
    return path


def test_the_file_is_read(file):
    settings = site.load(ROOT, {"CONVOY_SITE": str(file)})
    assert settings.image == Path("/from/file.sif")
    assert settings.sbatch_options == {"partition": "from_file", "account": "users"}
    assert settings.overrides == ["a=1", "b=[x,y]"]


def test_the_environment_goes_before_the_file(file):
    environment = {
        "CONVOY_SITE": str(file),
        "SBATCH_PARTITION": "from_environment",
        "CONVOY_IMAGE": "/mine.sif",
    }
    settings = site.load(ROOT, environment)
    assert settings.sbatch_options["partition"] == "from_environment"
    assert settings.image == Path("/mine.sif")


def test_without_a_file_the_defaults_are_the_checkouts(tmp_path):
    settings = site.load(tmp_path, {})
    assert settings.image == tmp_path / "build/convoy.sif"
    assert settings.sbatch_options == {} and settings.overrides == []


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConvoyError, match="CONVOY_SITE=.*gone does not exist"):
        site.load(ROOT, {"CONVOY_SITE": str(tmp_path / "gone")})


@pytest.mark.parametrize("given", [{}, {"CONVOY_IMAGE": "/mine.sif", "NCCL_SOCKET_IFNAME": ""}])
def test_bash_and_python_read_the_same(file, given):
    """The loop of slurm/site.sh, run by itself."""
    text = (ROOT / "slurm/site.sh").read_text()
    start, end = text.index("if [[ -f $site ]]"), text.index("# shellcheck disable=SC2086")
    script = f"set -euo pipefail; site=$1\n{text[start:end]}\nenv -0"
    base = {"PATH": os.environ["PATH"]} | given
    printed = subprocess.run(
        ["bash", "-c", script, "bash", file], env=base, capture_output=True, text=True, check=True
    )
    seen = dict(entry.split("=", 1) for entry in printed.stdout.split("\0") if entry)
    expected = site.load(ROOT, base | {"CONVOY_SITE": str(file)}).environment
    names = site.parse(TEXT).keys()
    assert len(names) == 5
    assert {name: seen[name] for name in names} == {name: expected[name] for name in names}


def test_the_example_names_nothing_that_would_surprise():
    assert site.parse((ROOT / "slurm/site.example.conf").read_text()) == {
        "SBATCH_PARTITION": "l40s_public",
        "SBATCH_ACCOUNT": "users",
    }


def test_the_checkout_is_found_or_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert site.find_checkout({}) == ROOT
    with pytest.raises(ConvoyError, match="No slurm/launch.sh in .*CONVOY_ROOT"):
        site.find_checkout({"CONVOY_ROOT": str(tmp_path)})
