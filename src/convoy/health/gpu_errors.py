"""What driver and kernel say of a GPU's memory errors and faults. Standard library only."""

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from convoy.health.finding import Status

# Faults of the hardware or its link, by NVIDIA's numbers ("Xid Errors"): double-bit ECC error, row
# remapping failed, NVLink, fallen off the bus, uncontained memory error, GSP firmware.
HARDWARE_XIDS = {48, 64, 74, 79, 95, 119, 120, 140}
RECENT = 24 * 3600.0  # seconds; older ones may have been mended by a reset, and other checks see it
PATIENCE = 10.0
PENDING = ("pending_retirement", "pending_blacklist")  # of new and of old drivers
_XID = re.compile(r"^.*?\[ *(\d+\.\d+)\] NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)", re.MULTILINE)


def examine_errors() -> tuple[Status, str]:
    """Of all GPUs of this machine. Raises subprocess.TimeoutExpired where nvidia-smi does not
    answer."""
    try:
        command = ("nvidia-smi", "-q", "-x")
        listed = subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE)
    except FileNotFoundError:
        return Status.OK, "not known: nvidia-smi is not here"
    if listed.returncode:
        said = (listed.stderr or listed.stdout).strip().splitlines()
        return Status.FAIL, f"nvidia-smi says: {said[-1] if said else 'nothing'}"
    kernel = subprocess.run(("dmesg",), text=True, capture_output=True, timeout=PATIENCE)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return judge_errors(listed.stdout, kernel.stdout, uptime)


def judge_errors(listed: str, kernel: str, uptime: float) -> tuple[Status, str]:
    """`listed` is what `nvidia-smi -q -x` says, `kernel` what dmesg does (empty where only root may
    read it), `uptime` the machine's, in seconds."""
    gpus = list(ElementTree.fromstring(listed).iter("gpu"))
    bad = [f"{gpu.get('id')}: {problem}" for gpu in gpus for problem in _problems(gpu)]
    bad += [
        f"{bus}: Xid {number} {(uptime - when) / 60:.0f} minutes ago"
        for when, bus, number in xids(kernel)
        if number in HARDWARE_XIDS and uptime - when < RECENT
    ]
    if bad:
        return Status.FAIL, f"{'; '.join(bad)}: the GPU needs a reset or a replacement"
    seen = "no Xid" if kernel else "Xids cannot be read here"
    return Status.OK, f"no uncorrected memory error, {seen}"


def _problems(gpu: ElementTree.Element) -> Iterator[str]:
    """Of one GPU; cards without ECC say N/A everywhere."""
    since_reset = gpu.find("ecc_errors/volatile")
    errors = uncorrected(since_reset) if since_reset is not None else 0
    if errors:
        yield f"{errors} uncorrected memory errors since its last reset"
    if _says(gpu, "remapped_rows/remapped_row_failure", "Yes"):
        yield "a broken row of its memory could not be replaced"
    if _says(gpu, "remapped_rows/remapped_row_pending", "Yes"):
        yield "a broken row of its memory is replaced at the next reset only"
    if any(_says(gpu, f"retired_pages/{name}", "Yes") for name in PENDING):
        yield "a broken page of its memory is retired at the next reset only"
    if _says(gpu, "ecc_errors/unrepairable_memory", "Yes"):
        yield "its memory cannot be repaired"
    action = gpu.findtext("gpu_recovery_action", "None").strip()
    if action not in {"None", "N/A"}:
        yield f"the driver asks for: {action}"


def uncorrected(counts: ElementTree.Element) -> int:
    """The sum of a section's counts of uncorrected errors, of drivers old and new."""
    old = counts.find("double_bit")  # up to the 2018 drivers, and for cards before Turing
    if old is not None:
        total = old.findtext("total", "").strip()
        return int(total) if total.isdigit() else 0
    texts = ((child.text or "").strip() for child in counts if "uncorrectable" in child.tag)
    return sum(int(text) for text in texts if text.isdigit())


def xids(kernel: str) -> list[tuple[float, str, int]]:
    """(seconds since boot, PCI address, number) of each Xid in the kernel's log."""
    return [(float(when), bus, int(number)) for when, bus, number in _XID.findall(kernel)]


def _says(gpu: ElementTree.Element, path: str, text: str) -> bool:
    return gpu.findtext(path, "").strip() == text
