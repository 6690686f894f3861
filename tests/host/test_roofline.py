"""The forecast against what was measured, and the user's table."""

import json
from pathlib import Path

import pytest

from convoy.host import roofline, speed_model
from convoy.host.roofline import COSTS, DEVICES
from convoy.host.speed_model import Shape, Workload

GOLDEN = Path(__file__).with_name("roofline.golden")


def test_within_three_percent_of_what_it_was_fitted_to():
    """1,293 samples/s of TransFuser on one H100, speed=max, batch 64 (docs/speed.md)."""
    took = roofline.step_seconds(COSTS["transfuser_agent"], DEVICES["h100"], 64)
    assert 64 / took == pytest.approx(1293, rel=0.03)


@pytest.mark.parametrize(("speed", "least", "most"), [("default", 480, 570), ("plain", 330, 394)])
def test_the_other_settings_within_what_was_measured_on_an_h200(speed, least, most):
    took = roofline.step_seconds(COSTS["transfuser_agent"], DEVICES["h200"], 64, speed)
    assert least < 64 / took < most


def test_two_h100_with_plain_steps():
    """616 samples/s were measured, 64 samples on each."""
    found = speed_model.predict(
        Workload("transfuser_agent", 128, speed="plain"), Shape("h100", 1, 2)
    )
    low, high = found.range
    assert low < 616 < high and found.samples_per_s == pytest.approx(616, rel=0.2)


def test_a_small_agents_step_is_the_hosts():
    steps = [
        roofline.step_seconds(COSTS["ego_status_mlp_agent"], DEVICES[gpu], 64)
        for gpu in ("l40s", "h200")
    ]
    assert steps[0] == pytest.approx(steps[1], rel=0.03)
    assert 64 / steps[1] == pytest.approx(45_664, rel=0.02)


@pytest.mark.parametrize(
    ("name", "memory"),
    [("l40s", 48), ("nvidia_l40s", 48), ("NVIDIA-L40S", 48), ("l40", 48), ("a100_80gb", 80)]
    + [("rtx_a6000", 48), ("h100_nvl", 80), ("geforce_rtx_4090", 24)],
)
def test_names_that_sites_give_their_gpus(name: str, memory: int):
    found = roofline.device(name)
    assert found is not None and found.memory == memory
    assert roofline.device("mi250x") is None
    assert roofline.device("l40s") is not roofline.device("l40")


def test_a_card_that_was_not_measured_is_less_sure():
    cost = COSTS["transfuser_agent"]
    spreads = [roofline.spread(cost, gpu, "max") for gpu in ("h200", "l40s", "mi250x")]
    assert spreads == sorted(spreads) and spreads[0] < 0.15 < 0.3 < spreads[1]


def user_table() -> list[dict[str, object]]:
    """40 epochs of 85,109 samples on 1 to 64 L40S and H200, 44 samples a GPU, from shards."""
    rows = []
    for gpu, each in (("l40s", 4), ("h200", 8)):
        for gpus in (1, each, 2 * each, 4 * each, 64):
            for network in (1.2, 12.0):  # GB/s: 10 Gbit/s Ethernet, 100 Gbit/s InfiniBand
                nodes = max(1, gpus // each)
                if nodes == 1 and network > 2:
                    continue
                shape = Shape(gpu, nodes, gpus // nodes)
                found = speed_model.predict(
                    Workload("transfuser_agent", 44 * gpus), shape, all_reduce=network
                )
                low, high = found.range
                minutes = [40 * 85_109 / one / 60 for one in (found.samples_per_s, high, low)]
                rows.append(
                    {
                        "gpus": f"{gpus} {gpu}",
                        "between_nodes_gb_per_s": network if nodes > 1 else None,
                        "samples_per_s": round(found.samples_per_s),
                        "minutes": [round(one) for one in minutes],
                    }
                )
    return rows


def test_the_users_table():
    shown = "\n".join(map(json.dumps, user_table())) + "\n"
    assert shown == GOLDEN.read_text(), f"if this is meant, write it to {GOLDEN}:\n{shown}"
