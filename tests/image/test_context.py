"""What an image is made of, and which changes its digests see."""

import subprocess
from pathlib import Path

import checkout
import context
import pytest

FILES = dict.fromkeys(
    [
        "Apptainer.def",
        "Dockerfile",
        "pyproject.toml",
        "README.md",
        "entrypoint/run.sh",
        "src/convoy/config.py",
        "image/runtime.sh",
        "image/requirements/cpu.txt",
        "image/requirements/cuda.txt",
        *(f"image/{name}" for name in context.DEPENDENCY_INPUTS),
    ],
    "first\n",
)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True,
        capture_output=True,
    )


def repository(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, with a NAVSIM of its own that is checked out already."""
    root = repository(tmp_path / "root", FILES)
    navsim = repository(
        root / "build/navsim",
        {"LICENSE": "l", "navsim/agent.py": "a", "navsim/agent.yaml": "y", "docs/x": "x"},
    )
    commit = subprocess.run(
        ["git", "-C", navsim, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    source = checkout.Source("navsim", "https://nowhere.invalid", commit, "navsim", ("/navsim/",))
    monkeypatch.setattr(context, "ROOT", root)
    monkeypatch.setattr(context, "BUILD", root / "build")
    monkeypatch.setattr(context, "load_sources", lambda _: [source])
    return root


def collect(root: Path, base=None, extra=None, weights=None) -> context.Inputs:
    return context.collect(root / "build/apptainer", "cpu", base, extra, weights)


def test_the_two_folders_hold_what_the_recipes_install(root: Path):
    collect(root)
    made = root / "build/apptainer"
    found = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert found == {
        *(f"dependencies/convoy/image/{name}" for name in context.DEPENDENCY_INPUTS),
        "dependencies/convoy/image/requirements/cpu.txt",
        "dependencies/navsim/LICENSE",
        "dependencies/navsim/navsim/agent.py",
        "dependencies/navsim/navsim/agent.yaml",
        "convoy/README.md",
        "convoy/entrypoint/run.sh",
        "convoy/image/runtime.sh",
        "convoy/pyproject.toml",
        "convoy/src/convoy/config.py",
    }


@pytest.mark.parametrize("name", ["src/convoy/config.py", "Apptainer.def", "image/runtime.sh"])
def test_a_change_of_the_package_leaves_the_dependencies_alone(root: Path, name: str):
    before = collect(root)
    (root / name).write_text("changed")
    after = collect(root)
    assert after.dependencies == before.dependencies and after.everything != before.everything
    assert after.commit == f"{before.commit}-dirty"


@pytest.mark.parametrize("name", ["image/requirements/cpu.txt", "image/install.py"])
def test_a_change_of_the_environment_is_seen(root: Path, name: str):
    before = collect(root)
    (root / name).write_text("changed")
    after = collect(root)
    assert after.dependencies != before.dependencies and after.everything != before.everything


@pytest.mark.parametrize(
    "name", ["image/requirements/cuda.txt", "docs/page.md", "tests/test_it.py"]
)
def test_what_is_not_in_the_image_does_not_count(root: Path, name: str):
    before = collect(root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("changed")
    assert collect(root) == before


def test_base_extra_requirements_and_weights_count(root: Path, tmp_path: Path):
    (tmp_path / "extra.txt").write_text("einops==1.0")
    (tmp_path / "weights/hub").mkdir(parents=True)
    (tmp_path / "weights/hub/model").write_text("w")
    (tmp_path / "base.tar").write_text("b")
    seen = {
        collect(root).dependencies,
        collect(root, base="debian:12").dependencies,
        collect(root, base=str(tmp_path / "base.tar")).dependencies,
        collect(root, extra=tmp_path / "extra.txt").dependencies,
        collect(root, weights=tmp_path / "weights").dependencies,
    }
    assert len(seen) == 5


def test_modes_do_not_follow_this_checkout_s_umask(root: Path):
    before = collect(root)
    (root / "src/convoy/config.py").chmod(0o600)
    (root / "src/convoy").chmod(0o700)
    assert collect(root).everything == before.everything
    made = root / "build/apptainer/convoy/src/convoy"
    assert (
        made.stat().st_mode & 0o777 == 0o755
        and (made / "config.py").stat().st_mode & 0o777 == 0o644
    )


def test_another_commit_of_navsim_is_refused(root: Path):
    (root / "build/navsim/navsim/agent.py").write_text("mine")
    git(root / "build/navsim", "commit", "--quiet", "-am", "mine")
    with pytest.raises(
        checkout.CheckoutError,
        match=r"navsim: .* is at [0-9a-f]{40}, pinned is .*NAVSIM_DEVKIT_ROOT",
    ):
        collect(root)
