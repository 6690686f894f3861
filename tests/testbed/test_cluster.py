"""The testbed itself, and the job files on the oldest and the newest SLURM that Debian has."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "testbed" / "cluster.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("testbed_cluster", CLUSTER)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_nodes_have_gaps_in_their_names(program):
    assert program.node_names(3) == ("gl001", "gl006", "gl011")


def test_settings_reach_slurm_conf(program):
    cluster = program.Cluster(
        "x",
        ("a1", "b2"),
        gpus=2,
        cpus=8,
        memory_gib=16,
        partitions=("one", "two"),
        slurm_conf=("KillWait=3", "NodeName=c3 State=DOWN"),
        accounting=False,
    )
    lines = program.slurm_conf(cluster).splitlines()
    nodes = (
        "NodeName=a1,b2 SocketsPerBoard=2 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=16384 "
        "Gres=gpu:l40s:2"
    )
    assert f"{nodes} State=UNKNOWN" in lines and "NodeName=c3 State=DOWN" in lines
    assert [line for line in lines if line.startswith("KillWait")] == ["KillWait=3"]
    assert "PartitionName=one Nodes=ALL Default=YES MaxTime=2-00:00:00 State=UP" in lines
    assert not any("slurmdbd" in line for line in lines)


def test_without_docker_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, CLUSTER, "up"],
        env={**os.environ, "DOCKER": str(tmp_path / "none")},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("testbed: There is no") and done.stderr.count("\n") == 1


class TestOnTheCluster:
    def test_run_returns_output_and_exit_code(self, testbed):
        done = testbed.run("bash", "-c", "id --user --name; pwd; echo to-stderr >&2; exit 7")
        assert done.code == 7
        assert set(done.out.split()) == {"researcher", str(ROOT), "to-stderr"}

    def test_it_looks_like_the_cluster(self, testbed):
        partitions = testbed.run("sinfo", "--noheader", "--format=%R %D %G %c").out.splitlines()
        assert sorted(partitions) == ["h200 4 gpu:l40s:4 128", "l40s_public 4 gpu:l40s:4 128"]
        assert (
            "users"
            in testbed.run(
                "sacctmgr", "-nP", "show", "assoc", "user=researcher", "format=account"
            ).out
        )

    def test_the_newest_slurm_accepts_each_job_file(self, testbed):
        accepts_each_job_file(testbed.name)

    def test_bash_is_clean(self, testbed):
        names = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True
        ).stdout.split()
        scripts = [
            name
            for name in names
            if (ROOT / name).read_bytes()[:20].startswith((b"#!/usr/bin/env bash", b"#!/bin/sh"))
            and not name.endswith(".golden")
        ]
        assert "slurm/launch.sh" in scripts and "slurm/torchrun_2node.slurm" in scripts
        done = testbed.run("shellcheck", "--external-sources", *scripts)
        assert done.code == 0, done.out


def test_slurm_22_05_accepts_each_job_file(docker):
    name = "convoy-test-old"
    manage = [sys.executable, CLUSTER, f"--name={name}"]
    base = os.environ.get("TESTBED_OLD_BASE", "debian:bookworm-slim")
    subprocess.run([*manage, "down"], check=True)
    started = subprocess.run(
        [
            *manage,
            "up",
            "--nodes=4",
            "--no-accounting",
            "--image=convoy-testbed-old",
            "--target=slurm",
            "--base",
            base,
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert started.returncode == 0, started.stdout
        version = subprocess.run(
            [*manage, "run", "sbatch", "--version"], text=True, capture_output=True
        ).stdout
        assert version.startswith("slurm-wlm 22.05")
        accepts_each_job_file(name)
    finally:
        subprocess.run([*manage, "down"], check=True)


def accepts_each_job_file(name: str) -> None:
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "slurm").glob("*.slurm"))
    assert len(files) >= 4
    for file in files:
        done = subprocess.run(
            [sys.executable, CLUSTER, f"--name={name}", "run", "sbatch", "--test-only", file],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0 and "to start at" in done.stdout, done.stdout
        if file.name.startswith("torchrun_"):
            nodes = int(file.name.removeprefix("torchrun_").removesuffix("node.slurm"))
            assert f"using {128 * nodes} processors" in done.stdout


def test_job_files_are_headers_and_differ_in_the_node_count_alone():
    texts = {nodes: (ROOT / f"slurm/torchrun_{nodes}node.slurm").read_text() for nodes in (1, 2, 4)}
    alike = {
        text.replace(f"--nodes={nodes}", "--nodes=N").replace(f"_{nodes}node", "_Nnode")
        for nodes, text in texts.items()
    }
    assert len(alike) == 1
    assert all(len(text.splitlines()) < 25 for text in texts.values())
    assert len((ROOT / "slurm/launch.sh").read_text().splitlines()) < 90


def test_odd_folders_and_values_cross_into_the_container(testbed):
    folder = '/scratch/a,b:c "q" $HOME'
    value = "$(touch /scratch/ran) `id` \"double\" 'single' \\"
    script = (
        'mkdir -p "$1/exp"; cd "$1"; "$2/slurm/container.sh" bash -c "pwd; printenv NCCL_DEBUG"'
    )
    done = testbed.run(
        "env",
        f"CONVOY_IMAGE={testbed.image}",
        f"NAVSIM_EXP_ROOT={folder}/exp",
        f"NCCL_DEBUG={value}",
        *("bash", "-c", script, "bash", folder, str(ROOT)),
    )
    assert done.code == 0 and done.out.splitlines()[-2:] == [folder, value], done.out
    assert testbed.run("test", "-e", "/scratch/ran").code == 1
