import numpy as np
import pytest

from convoy.scoring.summary import Table, interval, metrics

CSV = b""",token,valid,no_at_fault_collisions,two_frame_extended_comfort,score
0,a,True,1.0,,0.5
1,b,True,1.0,1.0,1.0
2,c,False,,,
3,average_all_frames,False,1.0,1.0,0.75
"""


def test_the_table_is_navsims():
    table = Table.parse(CSV)
    assert table.tokens == ("a", "b", "c")
    assert table.columns == ("no_at_fault_collisions", "two_frame_extended_comfort", "score")
    assert table.means["score"] == 0.75 and np.isnan(table.column("score")[2])


def test_metrics_have_means_and_intervals():
    found = metrics(Table.parse(CSV), {"a": "one", "b": "two", "c": "two"})
    assert found["score"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert found["two_frame_extended_comfort"]["low"] is None, "one log has values"


def test_the_interval_covers_as_often_as_it_says():
    """Scores of scenes that are alike within a log: whole logs are drawn."""
    generator = np.random.default_rng(1)
    logs = [f"log-{number // 10}" for number in range(400)]
    covered = 0
    for _ in range(100):
        of_log = generator.normal(0.5, 0.1, 40)
        values = np.repeat(of_log, 10) + generator.normal(0, 0.02, 400)
        low, high = interval(values, logs)
        covered += low <= 0.5 <= high
    assert 88 <= covered <= 99


def test_one_log_has_no_interval():
    assert interval(np.array([0.1, 0.9]), ["log", "log"]) == (None, None)
    assert interval(np.array([np.nan, 0.9]), ["log", "other"]) == (None, None)
    low, high = interval(np.array([0.5, 0.5]), ["log", "other"])
    assert low == pytest.approx(0.5) == high
