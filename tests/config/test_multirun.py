"""The points of a sweep, and how they are named."""

import pytest

from convoy.config import multirun
from convoy.errors import ConvoyError


def test_every_combination_the_last_varying_fastest():
    words = [
        "--config-name=mine",
        "agent=a,b",
        "train_logs=[x,y]",
        "+trainer.params.max_steps=range(2,7,2)",
    ]
    points = multirun.points(words)
    assert [point.words(words)[1::2] for point in points] == [
        [f"agent={agent}", f"+trainer.params.max_steps={steps}"]
        for agent in "ab"
        for steps in (2, 4, 6)
    ]
    assert points[0].words(words)[::2] == words[::2]


def test_names_are_hydra_s_override_dirname():
    from hydra._internal.config_loader_impl import get_overrides_dirname
    from hydra.core.override_parser.overrides_parser import OverridesParser

    point = multirun.points(["seed=1,2", "agent=a,b"])[3]
    parsed = OverridesParser.create().parse_overrides(list(point.chosen.values()))
    assert point.name == get_overrides_dirname(parsed, [], ",", "=") == "agent=b,seed=2"


def test_names_are_folders_and_differ():
    points = multirun.points(["cache_path='/a b','/a c'", "x=choice('p/q','p q')"])
    names = [point.name for point in points]
    assert len(set(names)) == 4
    assert not any(set(name) & set("/ '\"") for name in names)
    long = multirun.points([f"x={'a' * 300},{'a' * 300}b"])
    assert len({point.name for point in long}) == 2
    assert max(len(point.name) for point in long) < 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=1"], "--multirun has nothing to vary"),
        (["a=1,2", "a=3,4"], "a is varied twice"),
        (["a=interval(0,1)"], r"a=interval\(0,1\) names no list of values"),
        (["a=range(3,3)"], "is a range without a value"),
        (["a=1,2", "run_dir=/x"], "run_dir= names one run"),
        (["a=choice(1"], "cannot be read"),
    ],
)
def test_what_is_no_sweep_is_said(words, said):
    with pytest.raises(ConvoyError, match=said):
        multirun.points(words)


def test_a_value_named_twice_is_one_point():
    assert len(multirun.points(["a=1,1,2"])) == 2
