"""What several test files share: requirements of the machine, caches made on the spot, runs of the
real entrypoint."""

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]


class FoldersTogether(LoadScopeScheduling):
    """One worker has all tests of the built image, one all of the cluster; else whichever is free
    takes the next."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("::")[0].rsplit("/", 1)[0]
        return folder if folder in ("tests/image", "tests/testbed") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FoldersTogether:
    # Not `--dist loadgroup`: with pytest 9.2, pytest-xdist 3.8 takes no notice of its marks.
    return FoldersTogether(config, log)


def require(name: str, present: bool, reason: str) -> None:
    """Skip with `reason`, or fail where `CONVOY_REQUIRE` (names, or `all`) says that it must be
    there."""
    if present:
        return
    required = os.environ.get("CONVOY_REQUIRE", "").split(",")
    if name in required or "all" in required:
        pytest.fail(f"CONVOY_REQUIRE asks for {name}: {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test puts on the import path (a fork of NAVSIM's, say) leaves with it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="session")
def requirement() -> Callable[[str, bool, str], None]:
    """`require`, for test files in folders."""
    return require


@pytest.fixture(scope="session")
def navsim_tree() -> Path:
    """Root of a NAVSIM checkout."""
    from convoy.navsim.tree import find

    tree = find()
    require("navsim", tree is not None, "no NAVSIM tree here; `make navsim` checks one out")
    assert tree is not None
    return tree


@pytest.fixture
def show() -> Callable[[Path, int], tuple[str, str]]:
    """Shows a page in a real browser of that width: its document after its scripts have run, and
    what they said on the console."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    require("browser", browser is not None, "no Chromium here; apt-get install chromium")

    def show(page: Path, width: int) -> tuple[str, str]:
        assert browser is not None
        root = ["--no-sandbox"] if os.getuid() == 0 else []
        done = subprocess.run(
            [browser, "--headless", *root, "--disable-gpu", "--enable-logging=stderr"]
            + [f"--user-data-dir={page.parent}/browser", f"--window-size={width},1500"]
            + ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
            text=True,
            capture_output=True,
            timeout=120,
        )
        said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
        return done.stdout, said

    return show


@pytest.fixture(scope="session")
def cuda() -> Any:
    """The first GPU, as a torch device. CI has none: CONVOY_REQUIRE has to name `cuda` itself."""
    import torch

    if not torch.cuda.is_available():
        if "cuda" in os.environ.get("CONVOY_REQUIRE", "").split(","):
            pytest.fail("CONVOY_REQUIRE asks for cuda: torch sees no GPU here")
        pytest.skip("torch sees no GPU here; run on one with CONVOY_REQUIRE=cuda")
    return torch.device("cuda", 0)


def write_sample(folder: Path, **files: dict[str, Any]) -> None:
    """Write one token's folder in NAVSIM's cache format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
            pickle.dump(tensors, file)


@pytest.fixture
def ego_cache(tmp_path: Path) -> Path:
    """Four logs of eight tokens with EgoStatusMLP's two files each: small and quick to read."""
    return write_ego_cache(tmp_path / "cache", logs=4, tokens=8)


def write_ego_cache(root: Path, logs: int, tokens: int) -> Path:
    """Trajectories at the ego's speed plus a constant turn, so that there is something to learn."""
    import torch

    generator = torch.Generator().manual_seed(0)
    times = torch.arange(1, 9, dtype=torch.float64) * 0.5
    for log in range(logs):
        for token in range(tokens):
            speed, turn = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            trajectory = torch.stack(
                [(5 + 5 * speed) * times, 0.2 * turn * times**2, 0.1 * turn * times], dim=-1
            )
            command = torch.tensor([0.0, 1.0, 0.0, 0.0])
            ego = torch.cat([torch.tensor([5 + 5 * speed, 0.0, turn, 0.0]), command])
            write_sample(
                root / f"log-{log}" / f"{log:04x}{token:012x}",
                ego_status_feature={"ego_status": ego},
                trajectory_target={"trajectory": trajectory},
            )
    return root


# A NAVSIM tree of its own: an agent that Convoy has never seen, and the YAML that names it.
FOREIGN_AGENT = """
import torch


class Builder:
    def __init__(self, name):
        self.name = name

    def get_unique_name(self):
        return self.name


class ForeignAgent(torch.nn.Module):
    def __init__(self, lr, poison=None):
        super().__init__()
        self.lr, self.poison, self.steps = lr, poison, 0
        layers = torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 24)
        self.mlp = torch.nn.Sequential(*layers)

    def get_feature_builders(self):
        return [Builder("ego_status_feature")]

    def get_target_builders(self):
        return [Builder("trajectory_target")]

    def forward(self, features):
        return {"trajectory": self.mlp(features["ego_status"].float()).reshape(-1, 8, 3)}

    def compute_loss(self, features, targets, predictions):
        loss = torch.nn.functional.l1_loss(predictions["trajectory"], targets["trajectory"].float())
        self.steps += self.training
        return loss * float("nan") if self.steps == self.poison else loss

    def get_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def get_training_callbacks(self):
        return []
"""

FOREIGN_YAML = """
_target_: navsim.agents.foreign_agent.ForeignAgent
_convert_: all
lr: 0.01
"""


@pytest.fixture
def foreign_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own fork, written on the spot and named by NAVSIM_DEVKIT_ROOT."""
    root = tmp_path / "fork"
    agents = root / "navsim" / "agents"
    agents.mkdir(parents=True)
    for package in (agents.parent, agents):
        (package / "__init__.py").touch()
    (agents / "foreign_agent.py").write_text(FOREIGN_AGENT)
    group = root / "navsim/planning/script/config/common/agent"
    group.mkdir(parents=True)
    (group / "foreign_agent.yaml").write_text(FOREIGN_YAML)
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(root))
    return root


CPU = (
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32-true",
    "dataloader.params.num_workers=0",
)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `convoy train` on the CPU with this Python; output and errors in one string."""

    def run(
        *overrides: str,
        processes: int = 1,
        by_hand: Sequence[str] = (),
        timeout: int = 300,
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "CONVOY_PROCESSES_PER_NODE": str(processes),
            "NAVSIM_EXP_ROOT": str(tmp_path / "exp"),
            "PYTHONPATH": str(ROOT / "src"),
        }
        return subprocess.run(
            [sys.executable, "-m", "convoy.commands", "train", *by_hand, "--", *CPU, *overrides],
            env=environment,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )

    return run


@dataclass(frozen=True)
class RawData:
    """A raw data set: `samples` frames with 3 before and 10 after them, evenly over `logs` logs of
    split `mini`."""

    root: Path
    samples: int
    logs: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which NAVSIM finds it."""
        return {"OPENSCENE_DATA_ROOT": str(self.root), "NUPLAN_MAPS_ROOT": str(self.root / "maps")}


@pytest.fixture(scope="session")
def raw_data(tmp_path_factory: pytest.TempPathFactory) -> RawData:
    """Eight samples in two logs: speeding up behind a leader, turning right. Not to be written to:
    copy it first."""
    from convoy.synthetic.raw import write_raw

    root = tmp_path_factory.mktemp("raw")
    summary = write_raw(root, samples=8, logs=2, seed=2, all_cameras=False, workers=1)
    return RawData(root, summary.samples, summary.logs)


@pytest.fixture
def preempted_run(tmp_path: Path) -> Path:
    """The files of a run of 2 nodes x 4 GPUs that was preempted twice and goes on in a third start:
    what Convoy's parts write, at fixed times."""
    root = tmp_path / "exp" / "first" / "12"
    begin, hour = 1_767_600_000.0, 3600.0  # 5 January 2026, 08:00 UTC
    starts = [begin + 600, begin + 3 * hour, begin + 5 * hour]

    def lines(name: str, entries: list[dict[str, Any]]) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    lines(
        "launches.jsonl",
        [
            {
                "time": datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
                "start": f"12-{number}",
                "kind": "job",
                "job": "12",
                "nodes": ["gl001", "gl006"],
                "processes_per_node": 4,
                "software": {"image": "sha256:ab12", "convoy": "0a1b2c", "navsim": "0a380a9"},
                "overrides": ["agent=transfuser_agent", "global_batch=176"],
            }
            for number, start in enumerate(starts)
        ],
    )
    events = []
    for number, start in enumerate(starts):
        of = {"host": "gl001", "start": f"12-{number}"}
        events.append({"time": start, "kind": "start", **of, "world_size": 8, "restart": number})
        events += [
            {"time": start + n * 900, "kind": "checkpoint", **of, "step": 400 * n} for n in (1, 2)
        ]
        if number < 2:
            events.append({"time": start + 1.5 * hour, "kind": "signal", **of, "signal": "SIGUSR1"})
            events.append(
                {"time": start + 1.5 * hour + 20, "kind": "stop", **of, "message": "saved"}
            )
    lines("events.jsonl", events)
    for start in range(3):
        rows = ["epoch,step,train/loss,train/samples_per_s,val/loss,val/ade,val/fde"]
        for step in range(start * 800, start * 800 + 810, 10):
            rate = 300 + 15 * (step % 7) - (100 if step % 400 < 20 else 0)
            loss = 2.0 / (1 + step / 400) + 0.02 * (step % 3)
            rows.append(f"{step // 480},{step},{loss:.4f},{rate},,,")
            if step and step % 480 == 0:
                rows.append(f"{step // 480},{step},,,{loss:.4f},{2.5 / (1 + step / 300):.4f},3.1")
        path = root / "metrics" / f"version_{start}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(rows) + "\n")
    for node, host in enumerate(("gl001", "gl006")):
        samples = []
        for moment in range(0, int(6 * hour), 300):
            gpus = [
                {"index": gpu, "busy": 90 + gpu, "memory": 30_000, "memory_total": 46_068}
                | {"name": "NVIDIA L40S"}
                for gpu in range(4)
            ]
            used = (200 + node * 40 + moment // 300) * 2**30
            sample = {"time": begin + 600 + moment, "memory": used, "memory_limit": 1000 * 2**30}
            samples.append(sample | {"gpus": gpus})
        lines(f"vitals/{host}.jsonl", samples)
    for rank in range(8):
        slow = 0.9 if rank == 5 else 0.45
        path = root / "paces" / f"rank-{rank:03d}.json"
        path.parent.mkdir(exist_ok=True)
        pace = {"host": ("gl001", "gl006")[rank // 4], "own_s": slow + rank / 1000, "batch_s": 0.95}
        pace["data_wait"] = 0.21
        path.write_text(json.dumps(pace))
    (root / "progress.json").write_text(
        json.dumps(
            {"time": begin + 6.4 * hour, "step": 2400, "steps": 19_320, "epoch": 5, "loss": 0.3123}
            | {"samples_per_s": 312.5, "seconds_left": 9.2 * hour}
        )
    )
    (root / "prediction.json").write_text(
        json.dumps(
            {"time": begin, "job": "12", "gpu": "l40s", "nodes": 2, "gpus_per_node": 4}
            | {"samples_per_s": 400.0, "spread": 0.4, "source": "roofline, no earlier run"}
            | {"wait_s": [0, 300, 900], "training_s": [3e4, 4e4, 6e4], "total_s": [3e4, 4e4, 6.5e4]}
        )
    )
    (root / "config.yaml").write_text(
        "agent:\n  _target_: navsim.agents.transfuser.transfuser_agent.TransfuserAgent\n"
        "global_batch: 176\ncache_path: /data/navtrain\nseed: 0\n"
        "dataloader:\n  params:\n    batch_size: 22\n    num_workers: 4\n"
        "trainer:\n  params:\n    max_epochs: 40\n    accumulate_grad_batches: 1\n"
    )
    (root / "logs").mkdir()
    (root / "logs" / "rank-000.log").write_text("line 1\nline 2\n")
    return root
