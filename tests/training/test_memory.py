from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from convoy.health.memory import GIB, Memory, private_bytes, read_memory
from convoy.topology import Topology
from convoy.training.memory import explain, forecast

CONFIG = OmegaConf.create({"dataloader": {"params": {"batch_size": 64, "num_workers": 16}}})
TOPOLOGY = Topology(rank=3, host="gl002", world_size=4, local_world_size=4)


def test_the_switch_to_validation_is_foreseen():
    """The killed job of the public record: 16 workers a rank, and as many more for validation."""
    said, tight = forecast(Memory(150 * GIB, 256 * GIB, 0), 128 * GIB, 64)
    assert tight
    assert "host memory of this node: 150.0 of 256.0 GiB; the validation's 64 workers" in said
    assert "num_workers" in said and "--mem" in said
    assert forecast(Memory(150 * GIB, 256 * GIB, 0), 0, 0) == (
        "host memory of this node: 150.0 of 256.0 GiB",
        False,
    )


def test_a_gpu_s_lack_of_memory_is_explained():
    error = torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 44.40 GiB"
    )
    said = str(explain(error, CONFIG, TOPOLOGY))
    assert said.startswith("Out of GPU memory on rank 3 on gl002: 2.50 GiB more were asked for")
    assert "of 44.40 GiB" in said and "batch_size (64 now)" in said


def test_a_killed_worker_is_explained_and_nothing_else():
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "num_workers (16 now, for each rank)" in str(explain(error, CONFIG, TOPOLOGY))
    assert explain(ValueError("x"), CONFIG, TOPOLOGY) is None


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def machine(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  1000000 kB\nMemAvailable:  900000 kB\n")
    return path


def test_the_tightest_limit_above_counts(tmp_path, machine):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/job/step\n")
    write(root, cgroup__controllers="memory\n")
    write(
        root / "job",
        memory__max="500000000\n",
        memory__current="300000000\n",
        memory__stat="anon 100000000\nfile 200000000\nshmem 50000000\n",
        memory__events="oom 1\noom_kill 2\n",
    )
    write(
        root / "job/step",
        memory__max="max\n",
        memory__current="1\n",
        memory__stat="file 0\nshmem 0\n",
        memory__events="oom_kill 0\n",
    )
    assert read_memory(root, own, machine) == Memory(150_000_000, 500_000_000, 2)


def test_cgroup_version_1(tmp_path, machine):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("9:memory:/slurm/job_7\n1:name=systemd:/x\n")
    write(
        root / "memory/slurm/job_7",
        memory__limit_in_bytes="400000000\n",
        memory__usage_in_bytes="300000000\n",
        memory__stat="total_cache 200000000\ntotal_shmem 10000000\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )
    assert read_memory(root, own, machine) == Memory(110_000_000, 400_000_000, 1)


def test_without_a_limit_the_machine_is_it(tmp_path, machine):
    own = tmp_path / "own"
    own.write_text("0::/\n")
    found = read_memory(tmp_path / "none", own, machine)
    assert found == Memory(100_000 * 1024, 1_000_000 * 1024, None)


def test_this_process_has_memory_of_its_own():
    import os

    assert private_bytes(os.getpid()) > 10 << 20
    assert private_bytes(1 << 30) == 0
