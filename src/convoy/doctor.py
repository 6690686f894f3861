"""`convoy doctor`: what of this machine, this image and this allocation a training run can count on."""

import argparse
import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from convoy.errors import ConvoyError, ExitCode
from convoy.image_content import read_manifest
from convoy.topology import gpus_of_node

# The oldest driver branch that runs a CUDA major version's programs (NVIDIA, "CUDA Compatibility", minor version
# compatibility).
OLDEST_DRIVER = {12: 525, 13: 580}
DRIVER = Path("/proc/driver/nvidia/version")
SHM = Path("/dev/shm")
GIB = 1 << 30
MIB = 1 << 20
MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `status` is ok, warn (a run may work) or fail (it cannot)."""

    name: str
    status: str
    found: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", type=int, help="GPUs that must be here (default: what SLURM gave this node, if it says)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print all findings; exit code 3 if one of them is a failure."""
    expected = args.gpus if args.gpus is not None else gpus_of_node(os.environ)
    findings = list(examine(expected))
    failed = [finding for finding in findings if finding.status == "fail"]
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        table = Table("", "", "found", title="convoy doctor")
        for finding in findings:
            table.add_row(finding.name, MARKS[finding.status], finding.found)
        Console().print(table)
        for finding in failed:
            print(f"convoy doctor: {finding.name}: {finding.found}", file=sys.stderr)
    return ExitCode.PREFLIGHT if failed else ExitCode.FINISHED


def examine(expected_gpus: int | None) -> Iterator[Finding]:
    """All findings, one after the other; a check that itself breaks is a failure of its line."""
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "image": image,
        "python": python,
        "isolation": isolation,
        "packages": packages,
        "torch": torch,
        "driver": lambda: driver(expected_gpus),
        "GPUs": lambda: gpus(expected_gpus),
        "NCCL": nccl,
        "navsim": lambda: source_tree("navsim", "navsim"),
        "nuplan-devkit": lambda: source_tree("nuplan-devkit", "nuplan"),
        "weights": weights,
        "CPUs": lambda: cpus(expected_gpus),
        "/dev/shm": shared_memory,
        "temporary files": lambda: writable(Path(tempfile.gettempdir()), "fail", "TMPDIR names another place"),
        "run directories": lambda: writable(
            Path(os.environ.get("NAVSIM_EXP_ROOT", "exp")),
            "warn",
            "NAVSIM_EXP_ROOT, output_dir or run_dir name another place; it must be bound into the container",
        ),
    }
    for name, check in checks.items():
        try:
            yield Finding(name, *check())
        except Exception as error:
            lines = str(error).splitlines() or [""]
            yield Finding(
                name, "fail", lines[0] if isinstance(error, ConvoyError) else f"{type(error).__name__}: {lines[0]}"
            )


def image() -> tuple[str, str]:
    manifest = read_manifest()
    if manifest is None:
        return "ok", "not in an image"
    return "ok", f"{manifest['variant']}, commit {manifest['commit'][:12]}, content {manifest['digest'][:19]}…"


def python() -> tuple[str, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] in ((3, 11), (3, 12))
    return "ok" if good else "fail", f"{version} ({sys.executable})" + ("" if good else ": 3.11 or 3.12 is needed")


def isolation() -> tuple[str, str]:
    """Modules from the host's home directory or PYTHONPATH win over the image's, unseen."""
    own = {sys.prefix, sys.base_prefix, "/usr/lib/python3", str(Path(__file__).parents[1])}
    own |= {str(Path(folder).resolve()) for folder in _linked_folders()}
    foreign = [
        path for path in sys.path if path and not any(path == root or path.startswith(f"{root}/") for root in own)
    ]
    if not foreign:
        return "ok", "no module comes from elsewhere"
    remedy = "unset PYTHONPATH, or pass it on purpose with --env" if read_manifest() else "fine if it is meant"
    return ("fail" if read_manifest() else "warn"), f"modules are also taken from {', '.join(foreign)}: {remedy}"


def _linked_folders() -> list[str]:
    """What .pth files add to sys.path: NAVSIM's trees, and a checkout's src."""
    folders = []
    for site in (path for path in sys.path if path.endswith("-packages")):
        for file in Path(site).glob("*.pth"):
            folders += [line for line in file.read_text().splitlines() if line.startswith("/")]
    return folders


def packages() -> tuple[str, str]:
    """What is installed, against what was when the image was built."""
    found = {item.name.lower(): item.version for item in importlib.metadata.distributions()}
    manifest = read_manifest()
    if manifest is None:
        return "ok", f"{len(found)} installed"
    wrong = [
        f"{name} {found.get(name, 'missing')} instead of {version}"
        for name, version in manifest["python"].items()
        if found.get(name) != version
    ]
    if wrong:
        return "fail", f"{'; '.join(wrong[:3])}: something shadows the image's packages"
    return "ok", f"{len(manifest['python'])} as installed at the build, lock {manifest['lock'][:19]}…"


def torch() -> tuple[str, str]:
    import torch

    return "ok", f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"


def driver(expected_gpus: int | None) -> tuple[str, str]:
    import torch

    text = DRIVER.read_text() if DRIVER.exists() else ""
    return judge_driver(text, torch.version.cuda, _loads("libcuda.so.1"), bool(expected_gpus))


def judge_driver(text: str, cuda: str | None, loads: bool, needed: bool) -> tuple[str, str]:
    """`text` is /proc/driver/nvidia/version, empty without a driver; `cuda` is torch's version of it, None in a CPU
    build; `loads` says whether the driver's library can be loaded; `needed` whether GPUs are expected here."""
    match = re.search(r"Kernel Module(?: +for \S+)? +(\d+)\.([\d.]+)", text)
    version = f"{match[1]}.{match[2]}" if match else "unknown"
    if cuda is None:
        return (
            ("fail", "this is the cpu variant: GPUs need the cuda one")
            if needed
            else ("ok", "not needed by the CPU build")
        )
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
    if not text:
        return "fail" if needed else "warn", "no NVIDIA driver on this machine (on a login node that is usual)"
    if match and oldest and int(match[1]) < oldest:
        return "fail", (
            f"{version} is too old: torch's CUDA {cuda} needs driver {oldest} or newer. Ask for other nodes, or the "
            "administrators for a newer driver"
        )
    if not loads:
        return "fail", f"{version} on the host, but not in here: start the container with --nv"
    return "ok", f"{version} (CUDA {cuda} needs {oldest or 'an unknown one'} or newer)"


def gpus(expected: int | None) -> tuple[str, str]:
    """Each GPU that is seen multiplies two small matrices: a count alone says little."""
    import torch

    seen = torch.cuda.device_count()
    names = []
    for index in range(seen):
        ones = torch.ones(256, 256, device=f"cuda:{index}", dtype=torch.bfloat16)
        if (ones @ ones).sum().item() != 256**3:
            return "fail", f"GPU {index} ({torch.cuda.get_device_name(index)}) computes wrongly: exclude this node"
        properties = torch.cuda.get_device_properties(index)
        names.append(
            f"{properties.name} {properties.total_memory / GIB:.0f} GiB sm_{properties.major}{properties.minor}"
        )
    described = ", ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names)) or "none"
    if expected is None or seen == expected:
        return "ok", described + ("" if expected is None else f", as expected: {expected}")
    return (
        "fail",
        f"{expected} expected, {seen} seen ({described}): see --nv, CUDA_VISIBLE_DEVICES and the job's --gres",
    )


def nccl() -> tuple[str, str]:
    """NCCL falls back to TCP without a word when the verbs library or the devices are not in the container."""
    import torch

    adapters = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    version = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else "not in the CPU build"
    if not adapters:
        return "ok", f"{version}; no InfiniBand or RoCE adapter on this machine"
    if not _loads("libibverbs.so.1") or not Path("/dev/infiniband").exists():
        return "warn", f"{version}; the adapters {', '.join(adapters)} cannot be used from here: TCP would be"
    return "ok", f"{version}; adapters {', '.join(adapters)}"


def source_tree(name: str, package: str) -> tuple[str, str]:
    import importlib.util

    from convoy.agents import navsim

    navsim.make_importable()
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ("fail" if read_manifest() else "warn"), f"{package} cannot be imported: make navsim"
    folder = Path(next(iter(spec.submodule_search_locations)))
    settings = sum(1 for _ in folder.rglob("*.yaml"))
    if not settings:
        return "fail", f"{folder} holds no YAML file: a source tree is needed, not an installed wheel"
    if package == "navsim":
        from navsim.agents.abstract_agent import AbstractAgent  # noqa: F401
    return "ok", f"{_commit(name, folder.parent)}, {settings} YAML files, {folder.parent}"


def _commit(name: str, root: Path) -> str:
    if (root / ".git").exists() and shutil.which("git"):
        return subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()[
            :12
        ]
    manifest = read_manifest()
    if manifest and str(root) == f"/opt/{name}" and not os.path.ismount(root):
        return f"commit {manifest['sources'][name][:12]}"
    return "a tree of your own"


def weights() -> tuple[str, str]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in home.glob("hub/models--*"))
    return "ok", ", ".join(models) or f"none in {home} (only for agents that start from pretrained weights)"


def cpus(expected_gpus: int | None) -> tuple[str, str]:
    usable = len(os.sched_getaffinity(0))
    if expected_gpus and usable < 2 * expected_gpus:
        return "warn", f"{usable} for {expected_gpus} GPUs: srun hands CPUs on only with --cpus-per-task"
    return "ok", f"{usable} usable"


def shared_memory() -> tuple[str, str]:
    """DataLoader workers hand whole batches over through it, and die of SIGBUS where it is full."""
    size = shutil.disk_usage(SHM).total / GIB
    if size >= 1:
        return "ok", f"{size:.1f} GiB"
    return "warn", (
        f"{size * 1024:.0f} MiB: too little for data loader workers. Apptainer: --bind /dev/shm; Docker: --shm-size=8g"
    )


def writable(folder: Path, otherwise: str, remedy: str) -> tuple[str, str]:
    """The folder, or the one that it would be made in."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        return otherwise, f"{folder}: {error.strerror}: {remedy}"
    free = shutil.disk_usage(existing).free
    return "ok", f"{folder}, {f'{free / GIB:.0f} GiB' if free >= GIB else f'{free / MIB:.0f} MiB'} free"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
