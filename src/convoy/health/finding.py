"""A finding about the image, this machine or its GPUs: one line of a report."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from convoy.errors import ConvoyError


class Status(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARN = "warn"  # a run may work
    FAIL = "fail"  # it cannot


@dataclass(frozen=True)
class Finding:
    """One line of the report; `found` says what is there and, where it is not well, what to do."""

    name: str
    status: Status
    found: str


Check = Callable[[], tuple[Status, str]]


def examine(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """The finding of each check, one after the other; a check that itself breaks is a failure of
    its line."""
    for name, check in checks.items():
        try:
            yield Finding(name, *check())
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            text = first if isinstance(error, ConvoyError) else f"{type(error).__name__}: {first}"
            yield Finding(name, Status.FAIL, text)
