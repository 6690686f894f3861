"""How the builders are called, and how their failures end: in one line."""

import os
import re
import subprocess
import sys
import urllib.request
from argparse import Namespace
from pathlib import Path

import build_image
import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "image/build_image.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("name", ["ca", "extra", "weights"])
def test_a_missing_file_is_one_line(name: str, tmp_path: Path):
    done = run("apptainer", f"--{name}={tmp_path}/gone")
    assert (done.returncode, done.stderr) == (
        1,
        f"image: {name.upper()}={tmp_path}/gone does not exist\n",
    )


def test_a_builder_that_is_not_here_is_one_line(tmp_path: Path):
    with pytest.raises(build_image.BuildError, match="no-such-builder is not installed here"):
        build_image.execute(["no-such-builder"], tmp_path / "log", {}, tmp_path)


def test_a_full_disk_is_told_with_what_is_left(tmp_path: Path):
    """The kernel's own words: /dev/full is a full disk."""
    with pytest.raises(build_image.BuildError) as caught:
        build_image.execute(
            ["bash", "-c", "echo begin; echo x > /dev/full"], tmp_path / "log", {}, tmp_path
        )
    first, second = str(caught.value).splitlines()
    assert first == "the disk is full"
    assert re.search(rf"\d+\.\d GB free in {tmp_path}.*the whole output: {tmp_path}/log", second)


def test_an_unknown_failure_ends_with_the_builder_s_last_words(tmp_path: Path):
    with pytest.raises(build_image.BuildError, match="bash failed: what went wrong"):
        build_image.execute(
            ["bash", "-c", "echo begin; echo what went wrong; exit 3"],
            tmp_path / "log",
            {},
            tmp_path,
        )
    assert (tmp_path / "log").read_text() == "begin\nwhat went wrong\n"


def test_too_little_space_is_told_before_anything_is_built(tmp_path: Path):
    with pytest.raises(
        build_image.BuildError,
        match=r"has \d+\.\d GB left, and the build takes 1000000 GB there: elsewhere",
    ):
        build_image.check_space(tmp_path, 1_000_000, "elsewhere")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (None, {}),
        ("debian:12", {"bootstrap": "docker", "base": "debian:12"}),
        ("{tmp}/base.tar", {"bootstrap": "docker-archive", "base": "{tmp}/base.tar"}),
        ("{tmp}/base.sif", {"bootstrap": "localimage", "base": "{tmp}/base.sif"}),
        ("{tmp}/rootfs", {"bootstrap": "localimage", "base": "{tmp}/rootfs"}),
        ("base.tar", {"bootstrap": "docker-archive", "base": "{tmp}/base.tar"}),
        ("rootfs", {"bootstrap": "localimage", "base": "{tmp}/rootfs"}),
    ],
)
def test_a_base_is_told_apart(base, expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rootfs").mkdir()
    for name in ("base.tar", "base.sif"):
        (tmp_path / name).touch()
    found = build_image.bootstrap(base and base.format(tmp=tmp_path))
    assert found == {name: value.format(tmp=tmp_path) for name, value in expected.items()}


def test_secrets_are_files_for_the_build_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in build_image.PASSED_ON:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ca.pem").write_text("certificates")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/a.whl").write_text("wheel")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/it's?a=b&c")
    with build_image.secrets(
        Namespace(ca=tmp_path / "ca.pem", apt_mirror="http://debian.invalid")
    ) as folder:
        assert (folder / "ca").read_text() == "certificates"
        # Read as the steps read it, by a shell.
        shown = subprocess.run(
            [
                "bash",
                "-c",
                f'. {folder}/mirrors; echo "$APT_MIRROR $PIP_INDEX_URL $PIP_FIND_LINKS"',
            ],
            capture_output=True,
            text=True,
        ).stdout.split()
        assert shown[:2] == ["http://debian.invalid", "https://mirror.invalid/it's?a=b&c"]
        assert urllib.request.urlopen(f"{shown[2]}a.whl").read() == b"wheel"
    assert not folder.exists()


def test_both_recipes_start_from_the_same_base():
    pattern = r"debian:[\w.-]+@sha256:[0-9a-f]{64}"
    bases = [
        re.findall(pattern, (ROOT / recipe).read_text())
        for recipe in ("Apptainer.def", "Dockerfile")
    ]
    assert bases[0] == bases[1] and len(bases[0]) == 1
