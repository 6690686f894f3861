"""The all-reduce before a training: two real processes over gloo, one of which adds up wrongly."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convoy.errors import ConvoyError, ExitCode
from convoy.health.link import Link
from convoy.launch.network import free_port
from convoy.topology import Topology
from convoy.training import all_reduce
from convoy.training.all_reduce import AllReduce, OtherRankWrong, WrongSum, check_all_reduce
from convoy.training.process_group import HostGroup

PROGRAM = """
import json, os
from dataclasses import asdict
from datetime import timedelta
import torch
import torch.distributed as dist
from convoy.errors import ConvoyError
from convoy.topology import Topology
from convoy.training.all_reduce import check_all_reduce
from convoy.training.process_group import process_group

rank = int(os.environ["RANK"])
topology = Topology(rank=rank, local_rank=rank, world_size=2, local_world_size=2, host=f"h{rank}")
with process_group(topology, "cpu", timedelta(seconds=60)) as host_group:
    measured = check_all_reduce(topology, host_group, torch.device("cpu"))
    said = {"measured": asdict(measured)}
    right = dist.all_reduce
    def wrong(tensor, *args, **kwargs):
        right(tensor, *args, **kwargs)
        if rank == 1 and tensor.numel() > 1000:
            tensor[-1] += 1
    dist.all_reduce = wrong
    try:
        check_all_reduce(topology, host_group, torch.device("cpu"))
    except ConvoyError as error:
        said |= {"error": type(error).__name__, "code": error.exit_code, "message": str(error)}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def both_ranks() -> list[dict]:
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port(None, seed=f"{os.getpid()} {time.time()}")),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in ranks]


def test_the_bandwidth_is_the_same_figure_on_all_ranks(both_ranks):
    first, second = (said["measured"] for said in both_ranks)
    assert first == second and (first["ranks"], first["backend"]) == (2, "gloo")
    expected = first["bytes"] / first["seconds"] / 1e9  # 2 (n - 1) / n is 1 for two
    assert first["gb_per_s"] == pytest.approx(expected, rel=0.01)


def test_a_rank_that_adds_up_wrongly_is_named(both_ranks):
    assert [said["error"] for said in both_ranks] == ["OtherRankWrong", "WrongSum"]
    assert [said["code"] for said in both_ranks] == [ExitCode.RESUMABLE, ExitCode.PREFLIGHT]
    message = "An all-reduce over 2 ranks gave a wrong sum on rank 1 on h1."
    assert {said["message"] for said in both_ranks} == {message}


def test_where_all_are_wrong_nobody_is_named():
    with pytest.raises(ConvoyError, match="a wrong sum on all 2 ranks") as raised:
        all_reduce._require([("gl001", False), ("gl006", False)], Topology())
    assert not isinstance(raised.value, (WrongSum, OtherRankWrong))


def test_one_rank_has_nobody_to_add_to():
    topology = Topology()
    assert check_all_reduce(topology, HostGroup(topology, None), torch.device("cpu")) is None


def test_ranks_that_do_not_answer_end_the_process(monkeypatch):
    said, ended = [], []
    monkeypatch.setattr(all_reduce, "PATIENCE", 0.05)
    monkeypatch.setattr(all_reduce.os, "_exit", ended.append)
    with all_reduce._limited(Topology(world_size=4, num_nodes=4), said.append):
        time.sleep(0.3)
    assert ended == [ExitCode.RESUMABLE]
    assert "An all-reduce over 4 ranks did not end within" in said[0]


@pytest.mark.parametrize(
    ("backend", "gb_per_s", "link", "said", "warns"),
    [
        ("nccl", 208, Link("NVLink, 18 links", 478.0), "208 GB/s, 44 % of the link's (NV", False),
        ("nccl", 2, Link("PCIe 4.0 x16", 31.5), "2 GB/s, 6 % of the link's (PCIe", True),
        ("gloo", 0.1, Link("eth0, 10 Gbit/s", 1.25), "0.1 GB/s, 8 % of the link's (eth0", False),
        ("nccl", 2, None, "all-reduce over 2 ranks (nccl): 2 GB/s", False),
    ],
)
def test_the_bandwidth_stands_beside_the_links(caplog, backend, gb_per_s, link, said, warns):
    with caplog.at_level("INFO", logger="convoy"):
        all_reduce.say_all_reduce(AllReduce(2, 1, backend, 1, 1.0, gb_per_s), link)
    assert said in caplog.text
    assert ("NCCL_DEBUG=INFO" in caplog.text) == warns


def test_the_link_is_that_between_the_ranks(monkeypatch):
    monkeypatch.setattr(all_reduce, "between_nodes", lambda name: Link(str(name), 1.0))
    monkeypatch.setattr(all_reduce, "between_gpus", lambda gpu: Link(f"GPU {gpu}", 1.0))
    two = Topology(world_size=2, num_nodes=2)
    on_gpu, on_host = torch.device("cuda", 1), torch.device("cpu")
    named = {"NCCL_SOCKET_IFNAME": "=eth1,eth2"}
    assert str(all_reduce.link_of(two, on_gpu, named)) == "eth1, 1 GB/s"
    assert all_reduce.link_of(two, on_host, {}) == Link("None", 1.0)
    one = Topology(world_size=2, local_world_size=2)
    assert all_reduce.link_of(one, on_gpu, {}) == Link("GPU 1", 1.0)
    assert all_reduce.link_of(one, on_host, {}) is None
