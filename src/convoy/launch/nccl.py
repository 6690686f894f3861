"""How NCCL talks between nodes: over InfiniBand where there is an active port, else over TCP.

Only what its documentation recommends is set, each variable with its reason, and never one that a
person or a site set: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convoy.launch.interface import Choice

SYSTEM = Path("/sys/class")
FAST = 40_000  # Mbit/s: more than a single stream of TCP carries


@dataclass(frozen=True)
class Fabric:
    """What is there between nodes."""

    infiniband: tuple[str, ...]  # adapters with an active InfiniBand port
    roce: tuple[str, ...]  # adapters with an active Ethernet port
    interface: str | None  # carries the route to the other nodes
    speed: int | None  # of that interface, Mbit/s


def look(interface: str | None, system: Path = SYSTEM) -> Fabric:
    """Of this node, from sysfs; a container sees it too."""
    active: dict[str, list[str]] = {"InfiniBand": [], "Ethernet": []}
    for port in sorted(system.glob("infiniband/*/ports/*")):
        layer = _read(port / "link_layer")
        adapter = port.parent.parent.name
        is_active = _read(port / "state").endswith("ACTIVE")
        if is_active and layer in active and adapter not in active[layer]:
            active[layer].append(adapter)
    speed = _read(system / "net" / interface / "speed") if interface else ""
    return Fabric(
        tuple(active["InfiniBand"]),
        tuple(active["Ethernet"]),
        interface,
        int(speed) if speed.isdigit() else None,  # -1, or no file, where it is not known
    )


def choose(environment: Mapping[str, str], fabric: Fabric) -> Iterator[Choice]:
    """The settings for several nodes, one by one."""
    if fabric.infiniband:
        adapters = ", ".join(fabric.infiniband)
        wanted = {"NCCL_IB_HCA": "=" + ",".join(fabric.infiniband)}
        yield _unless_set(environment, wanted, f"InfiniBand: active ports on {adapters}")
        return
    if fabric.roce:
        adapters = ", ".join(fabric.roce)
        reason = f"NCCL decides between RoCE ({adapters}) and TCP: not every network carries RoCE"
        yield Choice({}, reason)
        return
    wanted = {"NCCL_IB_DISABLE": "1"}
    yield _unless_set(
        environment, wanted, "TCP: no active InfiniBand port in /sys/class/infiniband"
    )
    if fabric.speed is not None and fabric.speed >= FAST:
        wanted = {"NCCL_SOCKET_NTHREADS": "4", "NCCL_NSOCKS_PERTHREAD": "4"}
        reason = (
            f"{fabric.interface} has {fabric.speed // 1000} Gbit/s, more than one stream carries"
        )
        yield _unless_set(environment, wanted, reason)


def _unless_set(environment: Mapping[str, str], wanted: Mapping[str, str], reason: str) -> Choice:
    """Settings that belong together are set together or not at all."""
    given = [f"{name}={environment[name]}" for name in wanted if environment.get(name)]
    if given:
        return Choice({}, f"{', '.join(given)} as set")
    chosen = " ".join(f"{name}={value}" for name, value in wanted.items())
    return Choice(dict(wanted), f"{chosen} ({reason})")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
