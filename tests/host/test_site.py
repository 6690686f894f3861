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


def in_bash(file, given):
    """What the loop of slurm/site.sh exports, run by itself."""
    text = (ROOT / "slurm/site.sh").read_text()
    start, end = text.index("# Site settings"), text.index("read -ra modules")
    fail = 'fail() { echo "convoy: $*" >&2; exit 1; }'
    script = f"set -euo pipefail; {fail}; root=/nowhere\n{text[start:end]}\nenv -0"
    base = {"PATH": os.environ["PATH"], "CONVOY_SITE": str(file)} | given
    done = subprocess.run(["bash", "-c", script], env=base, capture_output=True)
    seen = done.stdout.decode(errors="surrogateescape").split("\0")
    return done, dict(entry.split("=", 1) for entry in seen if entry)


@pytest.mark.parametrize("given", [{}, {"CONVOY_IMAGE": "/mine.sif", "NCCL_SOCKET_IFNAME": ""}])
def test_bash_and_python_read_the_same(file, given):
    done, seen = in_bash(file, given)
    assert done.returncode == 0, done.stderr
    base = {"PATH": os.environ["PATH"]} | given
    expected = site.load(ROOT, base | {"CONVOY_SITE": str(file)}).environment
    names = site.parse(TEXT).keys()
    assert len(names) == 5
    assert {name: seen[name] for name in names} == {name: expected[name] for name in names}


VALUES = [
    "$HOME and ${PATH}",
    "$(touch /tmp/ran) `touch /tmp/ran`",
    "\"double\" and 'single'",
    "back\\slash \\n",
    " spaces  around ",
    "* ? [a-z] ~",
    "a;b & c | d > e # f",
    "é ü",
    "",
    "=x==",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["linux", "windows"])
def test_values_are_taken_exactly_as_typed(tmp_path, end):
    file = tmp_path / "site.conf"
    lines = [f"NCCL_{number}={value}" for number, value in enumerate(VALUES)]
    file.write_bytes(end.join(["A comment", *lines, "NCCL_LAST=no line end"]).encode())
    done, seen = in_bash(file, {})
    assert done.returncode == 0, done.stderr
    mine = site.load(ROOT, {"CONVOY_SITE": str(file)}).environment
    for found in (seen, mine):
        assert [found[f"NCCL_{number}"] for number in range(len(VALUES))] == VALUES
        assert found["NCCL_LAST"] == "no line end"


def test_a_file_that_is_not_there_ends_the_launch_too(tmp_path):
    done, _ = in_bash(tmp_path / "gone", {})
    told = f"convoy: CONVOY_SITE={tmp_path}/gone does not exist: name a file"
    assert done.returncode == 1 and done.stderr.decode().startswith(told)


def test_the_example_sets_nothing_when_it_is_copied():
    assert site.parse((ROOT / "slurm/site.example.conf").read_text()) == {}


def test_the_checkout_is_found_or_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert site.find_checkout({}) == ROOT
    with pytest.raises(ConvoyError, match="No slurm/launch.sh in .*CONVOY_ROOT"):
        site.find_checkout({"CONVOY_ROOT": str(tmp_path)})
