from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from convoy.config import CONF
from convoy.config.settings import SPEED_LEVELS, SPEED_SWITCHES
from convoy.errors import ConvoyError
from convoy.training.speed.recipe import Recipe, choose


def config(speed: str = "max", accelerator: str = "gpu", **changes: Any) -> DictConfig:
    loaded = OmegaConf.load(CONF / "settings.yaml")
    assert isinstance(loaded, DictConfig)
    loaded.speed = speed
    loaded.trainer.params.accelerator = accelerator
    loaded.trainer.params.precision = "bf16-mixed" if accelerator == "gpu" else "32-true"
    loaded.trainer.params.accumulate_grad_batches = 1
    for key, value in changes.items():
        OmegaConf.update(loaded, key.replace("__", "."), value, force_add=True)
    return loaded


def on(recipe: Recipe) -> set[str]:
    return {name for name, switch in recipe if switch.on}


def test_the_configuration_names_every_switch():
    assert set(config().speed_switches) == set(SPEED_SWITCHES)
    assert set(SPEED_SWITCHES.values()) <= {*SPEED_LEVELS, None}


def test_each_level_has_what_the_one_below_has():
    plain, default, most = (on(choose(config(level), 1)) for level in SPEED_LEVELS)
    assert plain == set()
    assert most - default == {"compile", "graph"}
    of_several = {"gradient_mean", "ddp", "peer_copies", "bf16_gradients"}
    assert most == set(SPEED_SWITCHES) - of_several


def test_several_ranks_have_all_that_one_has():
    assert on(choose(config(), 8)) == set(SPEED_SWITCHES) - {"ddp", "bf16_gradients"}
    assert on(choose(config("plain"), 8)) == {"gradient_mean"}
    assert on(choose(config(accelerator="cpu"), 8)) == {"gradient_mean"}


@pytest.mark.parametrize(
    "changes",
    [
        {"speed_switches__gradient_mean": False},
        {"trainer__params__sync_batchnorm": True},
        {"trainer__params__strategy": "ddp_find_unused_parameters_true"},
    ],
    ids=str,
)
def test_without_a_mean_of_our_own_it_is_ddp_and_no_graph(changes):
    recipe = choose(config(**changes), 8)
    assert not recipe["gradient_mean"] and not recipe["graph"] and recipe["ddp"]
    assert not choose(config("plain", **changes), 8)["ddp"]


def test_with_options_of_ddp_it_is_ddp_as_they_say():
    recipe = choose(config(trainer__params__strategy={"static_graph": True}), 8)
    assert not recipe["gradient_mean"] and not recipe["graph"] and not recipe["ddp"]


def test_copies_between_gpus_are_for_a_graph_of_several_ranks():
    assert choose(config(), 8)["peer_copies"]
    assert not choose(config(speed_switches__graph=False), 8)["peer_copies"]
    for world_size, speed in ((1, "max"), (8, "default")):
        with pytest.raises(ConvoyError, match="peer_copies=true cannot be had"):
            choose(config(speed, speed_switches__peer_copies=True), world_size)


def test_deterministic_training_has_the_deterministic_operators_at_every_level():
    recipe = choose(config("plain", trainer__params__deterministic=True), 1)
    assert on(recipe) == {"operators"}
    assert recipe.record()["switches"]["operators"]["reason"].endswith("deterministic is on")
    asked = config("plain", trainer__params__deterministic=True, speed_switches__operators=False)
    assert on(choose(asked, 1)) == set()


def test_on_the_host_nothing_is_on_and_the_record_says_why():
    recipe = choose(config(accelerator="cpu"), 1)
    assert on(recipe) == set()
    assert recipe.record()["switches"]["graph"] == {"on": False, "reason": "it is for GPUs"}


def test_one_switch_alone():
    assert on(choose(config("plain", speed_switches__operators=True), 1)) == {"operators"}
    assert "compile" not in on(choose(config(speed_switches__compile=False), 1))
    assert on(choose(config(accelerator="cpu", speed_switches__operators=True), 1)) == {"operators"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trainer__params__precision": "16-mixed"}, "loss scaler"),
        ({"trainer__params__accumulate_grad_batches": 2}, "accumulates 2 batches"),
        ({"trainer__params__strategy": {"static_graph": True}}, "options of DDP"),
        ({"trainer__params__sync_batchnorm": True}, "sync_batchnorm is on"),
        ({"trainer__params__strategy": "ddp_find_unused_parameters_true"}, "unused parameters"),
    ],
)
def test_what_speaks_against_a_graph_turns_it_off_with_its_reason(changes, reason):
    recipe = choose(config(**changes), 2)
    assert not recipe["graph"]
    assert reason in recipe.record()["switches"]["graph"]["reason"]


def test_an_explicit_precision_wins():
    recipe = choose(config(trainer__params__precision="32-true"), 1)
    assert not recipe["bf16"] and recipe["graph"]
    assert recipe.record()["switches"]["bf16"]["reason"] == "trainer.params.precision=32-true"


def test_what_was_asked_for_by_name_is_not_given_up_in_silence():
    with pytest.raises(ConvoyError, match="speed_switches.graph=true cannot be had: a step accum"):
        choose(config(speed_switches__graph=True, trainer__params__accumulate_grad_batches=2), 1)


def test_the_log_has_a_line_for_each_reason(caplog):
    with caplog.at_level("INFO", logger="convoy"):
        choose(config(trainer__params__accumulate_grad_batches=4), 1).log()
    assert "speed: off, since a step accumulates 4 batches: graph" in caplog.text
    assert "speed: off, since there is one rank: gradient_mean, ddp" in caplog.text
