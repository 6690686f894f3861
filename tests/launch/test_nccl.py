"""NCCL's transport from what sysfs shows, and the reasons."""

from pathlib import Path

import pytest

from convoy.launch.nccl import Fabric, choose, look


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def node(tmp_path):
    """Two InfiniBand adapters, one of them without a cable, an Ethernet one, and interfaces."""
    for adapter, state, layer in (
        ("mlx5_0", "4: ACTIVE", "InfiniBand"),
        ("mlx5_1", "1: DOWN", "InfiniBand"),
        ("mlx5_2", "4: ACTIVE", "Ethernet"),
    ):
        write(tmp_path / "infiniband" / adapter / "ports/1/state", state)
        write(tmp_path / "infiniband" / adapter / "ports/1/link_layer", layer)
    write(tmp_path / "net/eth0/speed", "100000")
    write(tmp_path / "net/eth1/speed", "-1")
    return tmp_path


def test_sysfs(node, tmp_path):
    assert look("eth0", node) == Fabric(("mlx5_0",), ("mlx5_2",), "eth0", 100_000)
    assert look("eth1", node).speed is None and look(None, node).speed is None
    assert look("eth0", tmp_path / "nothing") == Fabric((), (), "eth0", None)


def chosen(fabric: Fabric, **environment: str) -> tuple[dict[str, str], str]:
    choices = list(choose(environment, fabric))
    variables = {name: value for choice in choices for name, value in choice.variables.items()}
    return variables, "\n".join(choice.reason for choice in choices)


def test_infiniband_where_a_port_is_active():
    variables, reason = chosen(Fabric(("mlx5_0", "mlx5_3"), ("mlx5_2",), "ib0", None))
    assert variables == {"NCCL_IB_HCA": "=mlx5_0,mlx5_3"}
    assert "active ports on mlx5_0, mlx5_3" in reason


def test_tcp_and_more_streams_on_a_fast_interface():
    assert chosen(Fabric((), (), "eth0", 10_000))[0] == {"NCCL_IB_DISABLE": "1"}
    variables, reason = chosen(Fabric((), (), "eth0", 100_000))
    assert variables == {
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_NTHREADS": "4",
        "NCCL_NSOCKS_PERTHREAD": "4",
    }
    assert "TCP: no active InfiniBand port" in reason and "eth0 has 100 Gbit/s" in reason


def test_roce_is_left_to_nccl():
    variables, reason = chosen(Fabric((), ("mlx5_2",), "eth0", 100_000))
    assert variables == {} and "NCCL decides between RoCE (mlx5_2) and TCP" in reason


def test_what_a_person_set_stays():
    variables, reason = chosen(Fabric(("mlx5_0",), (), "ib0", None), NCCL_IB_HCA="mlx5_9")
    assert variables == {} and reason == "NCCL_IB_HCA=mlx5_9 as set"
    variables, reason = chosen(Fabric((), (), "eth0", 100_000), NCCL_SOCKET_NTHREADS="2")
    assert variables == {"NCCL_IB_DISABLE": "1"} and "NCCL_SOCKET_NTHREADS=2 as set" in reason
