"""The documentation is true: its trees, its links, its settings, its files, its messages."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from convoy.run.layout import RunDirectory

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "convoy"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text()


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one."""
    text = (ROOT / page).read_text()
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def block(text: str) -> str:
    """The first block of code."""
    found = re.search(r"```\n(.*?)```", text, re.DOTALL)
    assert found
    return found.group(1)


def tracked(*patterns: str) -> list[str]:
    """Files of the repository, those about to be added too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.splitlines()
    return [path for path in listed if (ROOT / path).exists()]


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def test_the_tree_lists_every_folder_and_nothing_else():
    tree = dict(
        line.split(maxsplit=1) for line in block(section("README.md", "What is where")).splitlines()
    )
    paths = tracked()
    top = {f"{path.split('/')[0]}/" for path in paths if "/" in path}
    rooms = {
        "/".join(path.split("/")[:3]) + "/"
        for path in paths
        if re.match(r"src/convoy/[^/]+/", path)
    }
    folders = (top - {"src/"}) | {"src/convoy/"} | rooms
    assert {entry for entry in tree if entry.endswith("/")} == folders
    assert all((ROOT / entry).exists() for entry in tree)


def test_the_architecture_has_a_line_for_every_room_and_file():
    listed, room = set(), ""
    for line in block(section("docs/architecture.md", "Rooms")).splitlines():
        entry = line.split(" " * 2)[0] if not line.startswith(" ") else line.split()[0]
        if not line:
            continue
        assert len(line.split(maxsplit=1)) == 2, f"a line without a description: {line}"
        if line.startswith(" "):
            listed.add(f"{room}{entry}")
        else:
            room = entry if entry.endswith("/") else ""
            listed.add(entry)
    files = {
        str(path.relative_to(PACKAGE))
        for path in map(Path, (ROOT / path for path in tracked("src/convoy/*.py")))
        if path.name != "__init__.py"
    }
    rooms = {f"{path.split('/')[0]}/" for path in files if "/" in path}
    missing = "\n".join(
        f"  {path.split('/', 1)[1]:<23} {summary(PACKAGE / path)}"
        for path in sorted(files - listed)
    )
    assert not missing, f"docs/architecture.md lacks a line for each of these:\n{missing}"
    assert listed == files | rooms, "docs/architecture.md lists what is not there"


def test_the_first_screen_shows_both_commands():
    first_screen = "\n".join(README.splitlines()[:24])
    assert "make demo" in first_screen and "make test" in first_screen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        assert target.startswith("https://") or (page.parent / file).exists(), target
        if heading and not target.startswith("https://"):
            titles = re.findall(r"^#+ (.*)$", (page.parent / file).read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert heading in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_not_too_long(page: Path):
    """Tables may be wider."""
    lines = page.read_text().splitlines()
    assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]


def test_the_readme_leads_to_every_guide():
    missing = {path for path in tracked("docs/*.md") if f"]({path})" not in README}
    assert not missing, "README.md, Guides, needs a row for each of these"


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets, page


def test_every_documented_setting_exists():
    config = OmegaConf.load(PACKAGE / "conf" / "settings.yaml")
    names = [
        name
        for row in re.findall(
            r"^\| (`.*?) \|", section("docs/training.md", "Settings of Convoy's own"), re.MULTILINE
        )
        for name in re.findall(r"`([^`]+)`", row)
    ]
    assert len(names) >= 8
    for name in (name.removesuffix(".NAME") for name in names):
        missing = object()
        assert OmegaConf.select(config, name, default=missing) is not missing, name


def files_of_a_run() -> set[str]:
    """Every path that run/layout.py names, with the words of the documentation for its parts."""
    run = RunDirectory(Path("RUN"))
    parts = {"rank": 0, "host": "HOST", "start": "START", "step": 0, "number": 0}
    paths = set()
    for name, member in vars(RunDirectory).items():
        if isinstance(member, property):
            paths.add(getattr(run, name))
        elif callable(member) and member.__annotations__.get("return") is Path:
            wanted = member.__code__.co_varnames[1 : member.__code__.co_argcount]
            paths.add(getattr(run, name)(*(parts[part] for part in wanted)))
    # What several runs share lies beside them.
    names = {str(path.relative_to("RUN")) for path in paths if path.is_relative_to("RUN")}
    return {re.sub(r"-0+(?=[./]|$)", "-N", name.replace("-000.", "-NNN.")) for name in names}


def test_every_file_of_a_run_is_documented_and_nothing_else():
    """A folder may stand for what is in it, and the other way round."""
    listed = {
        line.split()[0].rstrip("/")
        for line in block(section("docs/training.md", "The run directory")).splitlines()
    }
    named = files_of_a_run()

    def without(some: set[str], others: set[str]) -> set[str]:
        return {
            path
            for path in some
            if not any(
                f"{path}/".startswith(f"{other}/") or other.startswith(f"{path}/")
                for other in others
            )
        }

    assert not without(named, listed), "run/layout.py names files that docs/training.md lacks"
    assert not without(listed, named), "docs/training.md lists files that run/layout.py lacks"


def texts(path: Path) -> str:
    """The strings of a Python file, adjacent ones joined and values replaced by `…`.

    A script is taken as it is, with its variables replaced.
    """
    if path.suffix != ".py":
        return re.sub(r"\$(\{[^}]*\}|\([^)]*\)|\w+)", "…", path.read_text())
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append(
                "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%[sdr]|%\.\d[fg]", "…", node.value))
    return "\n".join(found)


def test_every_documented_message_exists():
    """Letters N and M stand for numbers, … for any value."""
    sources = [path for path in tracked("src/convoy/*.py", "slurm/*", "entrypoint/*")]
    said = "\n".join(texts(ROOT / path) for path in sources)
    rows = re.findall(
        r"^\| (`.*?) \|", (ROOT / "docs/when-a-run-dies.md").read_text(), re.MULTILINE
    )
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) >= 30
    unknown = []
    for message in messages:
        words = re.split(r"\b[NM]\b|…", message)
        pattern = r"[^\n]{0,80}?".join(re.escape(part) for part in words)
        if not re.search(pattern, said):
            unknown.append(message)
    assert not unknown, "docs/when-a-run-dies.md quotes messages that the code does not have"
