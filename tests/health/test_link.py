"""What links carry, from the words of nvidia-smi and the files of the kernel."""

import pytest

from convoy.health import link

NVLINKS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-9ac5d2f1)
\t Link 0: 26.562 GB/s
\t Link 1: 26.562 GB/s
\t Link 2: <inactive>
"""


def test_nvlink_comes_first_and_its_active_links_add_up():
    def ask(*arguments):
        return NVLINKS if "nvlink" in arguments else "5, 16\n"

    found = link.between_gpus(0, ask)
    assert found == link.Link("NVLink, 2 links", 53.124)
    assert str(found) == "NVLink, 2 links, 53.1 GB/s"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("4, 16\n", link.Link("PCIe 4.0 x16", 31.504)),
        ("3, 8", link.Link("PCIe 3.0 x8", 7.88)),
        ("[N/A], [N/A]", None),
        ("", None),
    ],
)
def test_a_card_without_nvlink_has_pcie(said, expected):
    found = link.between_gpus(1, lambda *arguments: "" if "nvlink" in arguments else said)
    assert found == expected


def test_without_nvidia_smi_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert link.between_gpus(0) is None


def port(system, adapter, rate, state="4: ACTIVE", layer="InfiniBand"):
    folder = system / "infiniband" / adapter / "ports/1"
    folder.mkdir(parents=True)
    for name, text in {"rate": rate, "state": state, "link_layer": layer}.items():
        (folder / name).write_text(text + "\n")


def test_active_infiniband_ports_carry_what_goes_between_nodes(tmp_path):
    port(tmp_path, "mlx5_0", "200 Gb/sec (4X HDR)")
    port(tmp_path, "mlx5_1", "200 Gb/sec (4X HDR)")
    port(tmp_path, "mlx5_2", "10 Gb/sec (4X SDR)", state="1: DOWN")
    port(tmp_path, "mlx5_3", "25 Gb/sec (1X EDR)", layer="Ethernet")
    assert link.between_nodes("eth0", tmp_path) == link.Link("InfiniBand, 2 ports", 50.0)


@pytest.mark.parametrize(
    ("speed", "expected"),
    [("10000", link.Link("eth0, 10 Gbit/s", 1.25)), ("-1", None), (None, None)],
)
def test_otherwise_the_interface_does(tmp_path, speed, expected):
    if speed is not None:
        (tmp_path / "net/eth0").mkdir(parents=True)
        (tmp_path / "net/eth0/speed").write_text(speed + "\n")
    assert link.between_nodes("eth0", tmp_path) == expected
    assert link.between_nodes(None, tmp_path) is None
