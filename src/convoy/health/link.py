"""What the link between the ranks carries, to compare a measured all-reduce with.

Standard library only.
"""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/class")
# GB/s of a lane in one direction, by generation: PCI Express Base Specification, after encoding.
PCIE_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}


@dataclass(frozen=True)
class Link:
    """Its name, and GB/s in one direction: what a bus bandwidth can reach at most."""

    name: str
    gb_per_s: float

    def __str__(self) -> str:
        return f"{self.name}, {self.gb_per_s:.3g} GB/s"


def between_gpus(gpu: int, ask: Callable[..., str] | None = None) -> Link | None:
    """Of the node's GPU of this number to the others: NVLink, else PCI Express; None if unknown.

    `ask` takes nvidia-smi's arguments and returns what it printed.
    """
    ask = ask or _nvidia_smi
    return nvlink(ask("nvlink", "--status", f"--id={gpu}")) or pcie(
        ask(
            f"--id={gpu}",
            "--query-gpu=pcie.link.gen.max,pcie.link.width.max",
            "--format=csv,noheader",
        )
    )


def nvlink(said: str) -> Link | None:
    """From `nvidia-smi nvlink --status`: a line `Link 0: 26.562 GB/s` for each active link."""
    speeds = [float(speed) for speed in re.findall(r"Link \d+: ([\d.]+) GB/s", said)]
    return Link(f"NVLink, {len(speeds)} links", sum(speeds)) if speeds else None


def pcie(said: str) -> Link | None:
    """From nvidia-smi's `4, 16`: generation and lanes."""
    found = re.fullmatch(r"(\d+), (\d+)", said.strip())
    if found is None or int(found[1]) not in PCIE_LANE:
        return None
    generation, lanes = int(found[1]), int(found[2])
    return Link(f"PCIe {generation}.0 x{lanes}", PCIE_LANE[generation] * lanes)


def between_nodes(interface: str | None, system: Path = SYSTEM) -> Link | None:
    """Of this node to others: all active InfiniBand ports, else the interface; None if unknown.

    Formats: the kernel's Documentation/ABI/stable/sysfs-class-infiniband and sysfs-class-net.
    """
    rates = []
    for port in sorted(system.glob("infiniband/*/ports/*")):
        rate = re.match(r"([\d.]+) Gb/sec", _read(port / "rate"))
        is_active = _read(port / "state").endswith("ACTIVE")
        if rate and is_active and _read(port / "link_layer") == "InfiniBand":
            rates.append(float(rate[1]) / 8)
    if rates:
        return Link(f"InfiniBand, {len(rates)} ports", sum(rates))
    speed = _read(system / "net" / interface / "speed") if interface else ""
    if not speed.isdigit():  # -1, or no file, where it is not known
        return None
    return Link(f"{interface}, {int(speed) / 1000:g} Gbit/s", int(speed) / 8000)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _nvidia_smi(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
