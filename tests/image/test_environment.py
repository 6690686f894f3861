"""Which set `make venv` installs and when it refuses."""

import environment
import pytest
from environment import check_python, choose_variant


def choose(
    asked: str = "auto",
    installed: str | None = None,
    driver: bool = False,
    cpu_build: bool | None = None,
):
    """`cpu_build=None`: the index must not be asked."""

    def has_cpu_torch() -> bool:
        assert cpu_build is not None
        return cpu_build

    return choose_variant(asked, installed, driver, "torch==1.0+cpu", has_cpu_torch)


@pytest.mark.parametrize("asked", ["cpu", "cuda"])
def test_what_is_asked_for_wins(asked: str):
    assert choose(asked, installed="cuda", driver=True)[0] == asked


def test_a_driver_means_cuda_even_over_an_installed_cpu_set():
    assert choose(installed="cpu", driver=True) == ("cuda", "an NVIDIA driver is present")


@pytest.mark.parametrize("installed", ["cpu", "cuda"])
def test_what_is_installed_stays(installed: str):
    assert choose(installed=installed)[0] == installed


def test_cpu_where_the_index_has_it():
    assert choose(cpu_build=True) == ("cpu", "no NVIDIA driver here")


def test_cuda_where_the_index_has_no_cpu_build_and_it_says_so():
    variant, reason = choose(cpu_build=False)
    assert variant == "cuda"
    for words in ("no torch==1.0+cpu", "2.7 GB", "PIP_EXTRA_INDEX_URL"):
        assert words in reason


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 13)])
def test_other_pythons_are_refused(version: tuple[int, int]):
    with pytest.raises(
        SystemExit, match=r"needs Python 3.11 or 3.12, but .* is 3.\d+: make PYTHON="
    ):
        check_python(version)


def test_python_312_is_welcome():
    check_python((3, 12))


def test_the_stamp_follows_the_lock_and_the_project(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for file in ("cpu.txt", "cuda.txt", "pyproject.toml"):
        (tmp_path / file).write_text(file)
    monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    before = environment.digest("cpu")
    (tmp_path / "cuda.txt").write_text("another")
    assert environment.digest("cpu") == before
    for file in ("cpu.txt", "pyproject.toml"):
        (tmp_path / file).write_text("another")
        assert environment.digest("cpu") != before
        before = environment.digest("cpu")
