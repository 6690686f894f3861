import re

import pytest
from omegaconf import OmegaConf

from convoy.errors import ConvoyError
from convoy.run.ownership import choose_root, open_run
from convoy.topology import Topology

BASE = {
    "seed": 0,
    "global_batch": 64,
    "run_dir": None,
    "experiment_name": "name",
    "trainer": {"params": {"max_epochs": 3, "num_nodes": 2, "precision": "32-true"}},
    "dataloader": {"params": {"num_workers": 4}},
}


def settings(**changes):
    return OmegaConf.merge(
        OmegaConf.create(BASE), OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()])
    )


def test_creates_the_layout_and_saves_the_configuration(tmp_path):
    run = open_run(tmp_path / "run", settings())
    assert run.logs.is_dir() and run.checkpoints.is_dir()
    assert OmegaConf.load(run.config) == settings()


def test_the_same_configuration_goes_on(tmp_path):
    open_run(tmp_path / "run", settings())
    open_run(tmp_path / "run", settings())


def test_where_and_how_long_it_runs_may_change(tmp_path):
    open_run(tmp_path / "run", settings())
    changes = {
        "trainer.params.max_epochs": 9,
        "trainer.params.num_nodes": 1,
        "dataloader.params.num_workers": 0,
        "trainer.params.max_steps": 100,
        "experiment_uid": "later",  # NAVSIM's default is the time of the start
    }
    open_run(tmp_path / "run", settings(**changes))


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    run = open_run(tmp_path / "run", settings())
    with pytest.raises(ConvoyError, match=re.escape("seed: 0 -> 5")) as refused:
        open_run(tmp_path / "run", settings(seed=5, **{"trainer.params.precision": "bf16-mixed"}))
    assert "trainer.params.precision: 32-true -> bf16-mixed" in str(refused.value)
    assert OmegaConf.load(run.config).seed == 0


@pytest.mark.parametrize("kept", [0, 40])
def test_a_configuration_that_was_cut_is_not_taken_for_another(tmp_path, kept):
    run = open_run(tmp_path / "run", settings())
    run.config.write_bytes(run.config.read_bytes()[:kept])
    with pytest.raises(ConvoyError, match="config.yaml is cut or damaged.*remove that file"):
        open_run(tmp_path / "run", settings())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConvoyError, match="cannot be written.*run_dir="):
        open_run(tmp_path / "file" / "run", settings())


def test_the_name_is_the_same_after_a_requeue(monkeypatch):
    monkeypatch.setenv("NAVSIM_EXP_ROOT", "/exp")
    first, again = (Topology(job_id="77", restart_count=count) for count in (0, 1))
    assert choose_root(settings(), first) == choose_root(settings(), again)
    assert str(choose_root(settings(), first)) == "/exp/name/77"


def test_a_given_directory_wins(tmp_path):
    assert (
        choose_root(settings(run_dir=tmp_path / "mine"), Topology(job_id="77")) == tmp_path / "mine"
    )


def test_without_a_job_the_time_names_it(monkeypatch):
    monkeypatch.delenv("NAVSIM_EXP_ROOT", raising=False)
    root = choose_root(settings(), Topology.from_environment({}))
    assert re.fullmatch(r"\d{8}-\d{6}", root.name)
