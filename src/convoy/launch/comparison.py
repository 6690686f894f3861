"""What the nodes of a start say of themselves, compared: which of them differ from the others, and
in what. Standard library only."""

import hashlib
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from convoy.launch.peers import Gathering

CLOCK = 60.0  # seconds that two clocks may differ
CLOCK_NOTED = 1.0  # from here on, times in the logs of two nodes mislead
NOTHING = "not there"
# What has to be the same everywhere, and how it is called.
SAME = {"image": "the image's content", "data": "the data set"}


def word(hosts: Sequence[str], data: Path, image: str | None, problems: Sequence[str]) -> Any:
    """What this node says of itself to the others: `problems` it found, the digest of the image's
    content, of the data set, and the hosts whose names have an address here."""
    return {
        "problems": list(problems),
        "image": image,
        "data": fingerprint(data),
        "resolved": resolved(hosts),
    }


def fingerprint(data: Path) -> str:
    """Of a data set's list of contents: the manifest of shards, or the names of a cache's logs."""
    manifest = data / "manifest.json"
    try:
        if manifest.is_file():
            return f"shards {hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]}"
        names = sorted(path.name for path in data.iterdir())
    except OSError:
        return NOTHING
    return f"{len(names)} logs {hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:16]}"


def resolved(hosts: Sequence[str]) -> list[str]:
    """The hosts whose names have an address here."""

    def resolves(host: str) -> bool:
        try:
            return bool(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except OSError:
            return False

    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        return [host for host, found in zip(hosts, pool.map(resolves, hosts), strict=True) if found]


def compare(gathering: Gathering) -> tuple[dict[str, list[str]], list[str]]:
    """The problems of each host that has any, and what is worth a note.

    What differs from most nodes is wrong; where two are as many, the first node is right. What
    every node lacks is no node's fault: another one would not help.
    """
    words = gathering.words
    found: dict[str, list[str]] = {host: list(said["problems"]) for host, said in words.items()}
    notes: list[str] = []
    for key, called in SAME.items():
        values = {host: said[key] for host, said in words.items()}
        usual = _usual(values.values())
        for host, value in values.items():
            if value != usual:
                found[host].append(f"{called} is {value} here, and {usual} on the other nodes")
    unresolved = _unresolved(words)
    for host, lacking in unresolved.items():
        text = f"the name of {', '.join(lacking)} has no address here"
        if len(unresolved) == len(words):
            notes.append(f"{host}: {text}")
        else:
            found[host].append(text)
    for host, ahead in _ahead_of_most(gathering.ahead).items():
        text = f"its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
        if abs(ahead) > CLOCK:
            found[host].append(text)
        elif abs(ahead) > CLOCK_NOTED:
            notes.append(f"{host}: {text}")
    return {host: problems for host, problems in found.items() if problems}, notes


def _usual(values: Iterable[Any]) -> Any:
    """The most common one, the first of those that are as common."""
    return Counter(values).most_common(1)[0][0]


def _ahead_of_most(ahead: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each clock is ahead of one that most others agree with."""
    if not ahead:
        return {}

    def agreeing(host: str) -> int:
        return sum(abs(other - ahead[host]) <= CLOCK for other in ahead.values())

    first = ahead[max(ahead, key=agreeing)]
    return {host: seconds - first for host, seconds in ahead.items()}


def _unresolved(words: Mapping[str, Any]) -> dict[str, list[str]]:
    """Hosts whose names have no address on a host."""
    lacking = {
        host: [other for other in words if other not in said["resolved"]]
        for host, said in words.items()
    }
    return {host: others for host, others in lacking.items() if others}
