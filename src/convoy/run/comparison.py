"""What differs between two runs, and what starting one of them again would not repeat.
Standard library only."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convoy.run.report import flat
from convoy.run.story import Story

# Where a run lives and how it is called: it differs between any two runs and means nothing.
NAMES = frozenset({"run_dir", "output_dir", "trainer.params.default_root_dir", "experiment_name"})
# What decides the results, of a start's record; the rest is when and where it was.
DECIDES = ("software.", "processes_per_node", "number of nodes", "gpu", "overrides")


@dataclass(frozen=True)
class Difference:
    """One fact that differs; `part` is configuration, start, manifest or results."""

    part: str
    name: str
    first: str
    second: str


def differences(first: Story, second: Story) -> list[Difference]:
    """In the resolved configuration, the last start's record and the results."""
    parts: tuple[tuple[str, Callable[[Story], Mapping[str, str]]], ...] = (
        ("configuration", _configuration),
        ("start", start_facts),
        ("manifest", manifest_facts),
        ("results", lambda run: flat(run.results)),
    )
    found = []
    for part, facts in parts:
        one, other = facts(first), facts(second)
        for name in dict.fromkeys([*one, *other]):
            if one.get(name) != other.get(name) and name not in NAMES:
                found.append(Difference(part, name, one.get(name, "-"), other.get(name, "-")))
    return found


def _configuration(run: Story) -> Mapping[str, str]:
    return run.config


def start_facts(run: Story) -> dict[str, str]:
    """What the record of the last start says that can decide results."""
    last: Mapping[str, Any] = run.launches[-1] if run.launches else {}
    facts = flat({name: value for name, value in last.items() if value is not None})
    if isinstance(last.get("nodes"), list):
        facts["number of nodes"] = str(max(1, len(last["nodes"])))
    if run.gpu:
        facts["gpu"] = run.gpu
    return {name: text for name, text in facts.items() if name.startswith(DECIDES)}


def manifest_facts(run: Story) -> dict[str, str]:
    """The manifest without its times; the software is the start's."""
    return {
        name: text
        for name, text in flat(run.manifest).items()
        if not name.startswith(("written", "finished", "software", "hardware.kernel"))
    }


def not_repeatable(run: Story, software: Mapping[str, str | None]) -> Iterator[str]:
    """Why the same command would not be the same run now, a sentence each.

    `software` is what a new start would use, of the names in a start's record; a name that it
    lacks is not compared.
    """
    last = run.launches[-1] if run.launches else {}
    recorded = last.get("software") or {}
    for name, now in software.items():
        before = recorded.get(name)
        if before and now and before != now:
            yield f"{name} was {_short(before)} and is {_short(now)} now"
    for name in ("convoy", "navsim"):
        if str(recorded.get(name) or "").endswith("-edited"):
            yield (
                f"{name}'s files differed from their commit; the run directory has no copy of them"
            )
    if last and not recorded.get("image"):
        yield "it ran outside of an image, so its packages are not known"
    if len({str(launch.get("software")) for launch in run.launches}) > 1:
        yield "its starts used different software; the last one's is compared"
    if len({len(launch.get("nodes") or ()) for launch in run.launches}) > 1:
        yield "its starts had different numbers of nodes; the last one's is taken"
    if run.config.get("trainer.params.deterministic") not in {"true", "True", "warn"}:
        yield "deterministic operators were not asked for: equal runs differ in the last digits"


def _short(text: str) -> str:
    return text if len(text) < 30 else f"{text[:20]}…"
