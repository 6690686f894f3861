"""Rates: the priors' order, what earlier runs change, how sure it is."""

import math

import pytest

from convoy.host import speed_model
from convoy.host.speed_model import Observation, Shape, Workload

SHARDS = Workload("transfuser_agent", 176)
CACHE = Workload("transfuser_agent", 176, "cache")


def rate(workload: Workload, shape: Shape, seen: list[Observation] | None = None, **facts):
    return speed_model.predict(workload, shape, seen or [], **facts)


def test_more_gpus_are_faster_but_not_more_than_in_proportion():
    many = Workload("transfuser_agent", 1024, rank_batch=256)  # nothing is accumulated
    rates = [rate(many, Shape("l40s", nodes, 4)).samples_per_s for nodes in (1, 2, 4)]
    assert rates[0] < rates[1] <= 2 * rates[0] and rates[1] < rates[2] <= 2 * rates[1]


def test_the_setting_speed_counts_and_accumulation_takes_the_graph_away():
    def alone(speed: str, gpus: int, batch: int = 64) -> float:
        workload = Workload("transfuser_agent", batch, speed=speed, rank_batch=64)
        return rate(workload, Shape("h200", 1, gpus)).samples_per_s

    assert alone("plain", 1) < alone("default", 1) < alone("max", 1)
    assert alone("default", 8) < alone("max", 8)
    assert alone("max", 1, batch=128) == alone("default", 1, batch=128)


def test_a_faster_network_helps_and_a_measured_one_makes_it_surer():
    shape = Shape("h200", 4, 8)
    slow, fast = (rate(SHARDS, shape, all_reduce=gb) for gb in (1.0, 50.0))
    assert slow.samples_per_s < fast.samples_per_s
    assert fast.spread < rate(SHARDS, shape).spread


def test_what_earlier_runs_measured_of_the_network_counts():
    """Runs of another agent measure the same network."""
    shape = Shape("h200", 4, 8)
    other = Workload("ego_status_mlp_agent", 176)
    seen = [Observation(other, Shape("h200", 2, 8), 20_000.0, all_reduce=gb) for gb in (40, 50, 60)]
    assert rate(SHARDS, shape, seen) == rate(SHARDS, shape, seen, all_reduce=50.0)
    assert rate(SHARDS, shape, seen).samples_per_s > rate(SHARDS, shape, all_reduce=1).samples_per_s


def test_a_gzip_cache_may_be_what_limits():
    shape = Shape("h200", 1, 8)
    assert rate(CACHE, shape).samples_per_s < rate(SHARDS, shape).samples_per_s
    assert rate(CACHE, shape).samples_per_s == pytest.approx(8 * 4 * 25.0, rel=0.2)


def test_a_run_of_the_same_shape_is_believed():
    seen = Observation(CACHE, Shape("l40s", 4, 4), 74.0, "job 273202")
    found = rate(CACHE, Shape("l40s", 4, 4), [seen])
    assert found.samples_per_s == pytest.approx(74.0)
    assert found.spread <= 0.1 and found.source == "job 273202 on 16 l40s"


def test_a_run_of_another_shape_is_scaled_and_less_sure():
    seen = [Observation(CACHE, Shape("l40s", 4, 4), 74.0)]
    other = rate(CACHE, Shape("l40s", 1, 4), seen)
    # Every GPU has its own loader; 22 samples a GPU are a little faster than 11.
    assert other.samples_per_s == pytest.approx(74 / 4, rel=0.12)
    assert rate(CACHE, Shape("l40s", 4, 4), seen).spread < other.spread
    on_h200 = rate(CACHE, Shape("h200", 1, 8), seen)
    assert on_h200.spread > rate(CACHE, Shape("l40s", 2, 4), seen).spread


def test_what_a_slow_network_cost_comes_back_on_fewer_nodes():
    wide, narrow = Shape("h200", 4, 8), Shape("h200", 1, 8)
    seen = [Observation(SHARDS, wide, rate(SHARDS, wide, all_reduce=12.0).samples_per_s)]
    found = rate(SHARDS, narrow, seen, all_reduce=12.0)
    assert found.samples_per_s == pytest.approx(rate(SHARDS, narrow).samples_per_s, rel=0.01)


def test_the_scatter_of_several_runs_is_the_spread():
    shape = Shape("l40s", 1, 4)
    seen = [Observation(SHARDS, shape, value) for value in (100.0, 200.0, 50.0)]
    found = rate(SHARDS, shape, seen)
    assert found.samples_per_s == pytest.approx(100.0) and found.spread == pytest.approx(
        math.log(2)
    )


def test_an_agent_nobody_knows_has_a_wide_range():
    known, unknown = (
        rate(SHARDS, Shape("h200", 1, 8)),
        rate(Workload("x", 176), Shape("h200", 1, 8)),
    )
    assert unknown.spread > known.spread
    low, high = unknown.range
    assert high / low > 5


def test_a_gpu_nobody_knows_has_a_wide_range():
    assert rate(SHARDS, Shape("mi250x", 1, 4)).spread > 0.8
