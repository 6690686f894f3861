"""Pinned checkouts, against small repositories made on the spot."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import checkout
import pytest
from checkout import CheckoutError, Source, check_out, load_sources


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A repository whose pinned commit is not its newest."""
    upstream = tmp_path / "upstream"
    (upstream / "planner").mkdir(parents=True)
    (upstream / "planner" / "__init__.py").write_text("version = 1\n")
    (upstream / "planner" / "agent.yaml").write_text("lr: 1e-4\n")
    (upstream / "assets").mkdir()
    (upstream / "assets" / "film.mp4").write_bytes(b"\0" * 1000)
    git(upstream.parent, "init", "--quiet", str(upstream))
    git(upstream, "add", ".")
    git(upstream, "commit", "--quiet", "--message", "pinned")
    pinned = git(upstream, "rev-parse", "HEAD")
    (upstream / "planner" / "__init__.py").write_text("version = 2\n")
    git(upstream, "commit", "--quiet", "--all", "--message", "newer")
    return Source("planner", upstream.as_uri(), pinned, "planner", ("/planner/",))


def test_the_pinned_commit_and_only_what_is_needed(source: Source, tmp_path: Path):
    folder = tmp_path / "planner"
    check_out(source, folder)
    assert git(folder, "rev-parse", "HEAD") == source.commit
    assert (folder / "planner" / "__init__.py").read_text() == "version = 1\n"
    assert (folder / "planner" / "agent.yaml").exists()
    assert not (folder / "assets").exists()


def test_a_second_call_needs_no_git_host(source: Source, tmp_path: Path):
    folder = tmp_path / "planner"
    check_out(source, folder)
    check_out(replace(source, url=(tmp_path / "gone").as_uri()), folder)


def test_a_commit_that_upstream_lacks_is_named_and_leaves_nothing(source: Source, tmp_path: Path):
    folder, missing = tmp_path / "planner", "0123456789" * 4
    with pytest.raises(CheckoutError, match=f"{source.url} does not give commit {missing}"):
        check_out(replace(source, commit=missing), folder)
    assert not folder.exists()
    check_out(source, folder)  # what the failed attempt left is not in the way


def test_a_checkout_of_another_commit_is_refused(source: Source, tmp_path: Path):
    folder = tmp_path / "planner"
    check_out(source, folder)
    git(folder, "checkout", "--quiet", "origin/HEAD")
    newer = git(folder, "rev-parse", "HEAD")
    with pytest.raises(
        CheckoutError,
        match=f"is at {newer}, pinned is {source.commit}: delete .*NAVSIM_DEVKIT_ROOT",
    ):
        check_out(source, folder)


@pytest.mark.parametrize("file", ["planner/agent.yaml", "planner/new.yaml"])
def test_a_changed_tree_is_refused(source: Source, tmp_path: Path, file: str):
    folder = tmp_path / "planner"
    check_out(source, folder)
    (folder / file).write_text("lr: 1\n")
    with pytest.raises(CheckoutError, match=rf"is not as committed \({file}\)"):
        check_out(source, folder)


def test_a_folder_that_is_no_checkout_is_refused(source: Source, tmp_path: Path):
    folder = tmp_path / "planner"
    folder.mkdir()
    with pytest.raises(CheckoutError, match="is not a git checkout"):
        check_out(source, folder)


def test_an_unreachable_host_ends_the_program_with_one_line(tmp_path: Path):
    sources = tmp_path / "sources.toml"
    url = "https://git.invalid/planner.git"
    sources.write_text(
        f'[planner]\nurl = "{url}"\ncommit = "{"0" * 40}"\n'
        'package = "planner"\npatterns = ["/planner/"]\n'
    )
    result = subprocess.run(
        [sys.executable, checkout.__file__, tmp_path / "build", "--sources", sources],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert (
        result.stderr.startswith(f"planner: cannot clone {url} (")
        and result.stderr.count("\n") == 1
    )


def test_linked_packages_are_imported_from_their_trees(source: Source, tmp_path: Path):
    folder = tmp_path / "planner"
    check_out(source, folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    checkout.link([folder], site_packages)
    program = "import planner; print(planner.version, planner.__path__[0])"
    python = tmp_path / "venv" / "bin" / "python"
    output = subprocess.run(
        [python, "-I", "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert output.split() == ["1", str(folder / "planner")]


def test_every_pinned_source_is_a_full_commit_over_https():
    sources = load_sources(checkout.SOURCES)
    assert {source.package for source in sources} == {"navsim", "nuplan"}
    for source in sources:
        assert len(source.commit) == 40 and int(source.commit, 16)
        assert source.url.startswith("https://")
