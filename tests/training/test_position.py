"""A run that was interrupted anywhere ends as one that was not, bit by bit."""

import csv
import json
import resource
import signal

import pytest
import torch

from convoy.errors import ConvoyError
from convoy.navsim.weights import write_random_backbone
from convoy.run.events import read
from convoy.run.layout import RunDirectory
from convoy.run.stop_request import StopRequest
from convoy.synthetic.write import write_cache
from convoy.training.checkpoint import load, verify
from convoy.training.position import pl, rescale, went_on
from convoy.training.stopping import StoppedEarly


def end_of(run_dir):
    """All that a run's last checkpoint holds, less what counts batches for the metrics' files."""
    state = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    del state["convoy"]["metrics"]
    state["loops"]["fit_loop"].pop("epoch_loop.val_loop.batch_progress")
    return state


def assert_same(one, other, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert one == other, where


def steps_of(diary):
    """What each batch held; what was trained again after a stop has to be the same."""
    found = {}
    for line in diary.read_text().splitlines():
        *batch, samples = line.split(" ", 3)
        assert found.setdefault(tuple(batch), samples) == samples
    return found


ACCUMULATED = "dataloader.params.batch_size=2"  # four batches a step
RARELY_VALIDATED = ("trainer.params.check_val_every_n_epoch=3", "agent.plateau=false")


@pytest.mark.parametrize(
    ("interrupt", "overrides"),
    [
        ("train 1 1", ()),
        ("train 0 0", ()),
        ("train 1 5", (ACCUMULATED,)),
        ("train 1 2", ()),
        ("validate 1 0", ()),
        ("validate 1 0", (ACCUMULATED, "trainer.params.val_check_interval=4")),
        ("train 1 2", RARELY_VALIDATED),
    ],
    ids=[
        "in an epoch",
        "in the first step",
        "in an accumulation",
        "in the last step of an epoch",
        "in a validation",
        "in a validation in an epoch",
        "in the last step of an epoch without validation",
    ],
)
def test_interrupted_equals_uninterrupted(train_here, tmp_path, monkeypatch, interrupt, overrides):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setenv("DIARY", str(tmp_path / "whole.txt"))
    train_here(whole, *overrides)
    monkeypatch.setenv("DIARY", str(tmp_path / "parts.txt"))
    with pytest.raises(StoppedEarly, match="Stopped by SIGUSR1 after step"):
        train_here(parts, *overrides, interrupt=interrupt)
    train_here(parts, *overrides)
    assert_same(end_of(parts), end_of(whole))
    assert steps_of(tmp_path / "parts.txt") == steps_of(tmp_path / "whole.txt")


@pytest.mark.parametrize(
    "overrides",
    [(), ("trainer.params.check_val_every_n_epoch=2", "agent.plateau=false")],
    ids=["validated", "not validated"],
)
def test_more_epochs_go_on_from_a_finished_run(train_here, tmp_path, monkeypatch, overrides):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setenv("DIARY", str(tmp_path / "whole.txt"))
    train_here(whole, *overrides)
    monkeypatch.setenv("DIARY", str(tmp_path / "parts.txt"))
    train_here(parts, *overrides, "trainer.params.max_epochs=1")
    train_here(parts, *overrides)
    assert_same(end_of(parts), end_of(whole))
    assert steps_of(tmp_path / "parts.txt") == steps_of(tmp_path / "whole.txt")


def test_a_finished_run_stays_as_it_is(train_here, tmp_path):
    train_here(tmp_path / "run", "trainer.params.max_epochs=1")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["ade"] > 0 and results["samples_per_s"] > 0
    train_here(tmp_path / "run", "trainer.params.max_epochs=1")
    assert json.loads((tmp_path / "run/results.json").read_text()) == results


@pytest.mark.parametrize("wrong", [False, True], ids=["as saved", "saved wrong"])
def test_another_accumulation_takes_the_same_samples_a_step(
    train_here, tmp_path, monkeypatch, wrong
):
    """Stopped with four batches a step, gone on with one. A wrong saved accumulation is noticed."""

    def samples_of_steps(name):
        steps = {}
        for line in (tmp_path / name).read_text().splitlines():
            step, _, _, samples = line.split(" ", 3)
            steps.setdefault(step, set()).update(json.loads(samples))
        return steps

    monkeypatch.setenv("DIARY", str(tmp_path / "whole.txt"))
    train_here(tmp_path / "whole")
    monkeypatch.setenv("DIARY", str(tmp_path / "parts.txt"))
    with pytest.raises(StoppedEarly):
        train_here(tmp_path / "parts", ACCUMULATED, interrupt="train 1 3")
    if wrong:
        path = (tmp_path / "parts/checkpoints/last.ckpt").resolve()
        state = torch.load(path, weights_only=True)
        state["convoy"]["accumulation"] = 2
        torch.save(state, path)
    train_here(tmp_path / "parts")
    same = samples_of_steps("parts.txt") == samples_of_steps("whole.txt")
    assert same != wrong


def test_counters_are_rescaled_in_whole_steps():
    counts = {"ready": 8, "started": 8, "processed": 8, "completed": 7}
    progress = {"current": dict(counts), "total": {name: 4 * n for name, n in counts.items()}}
    rescale(progress, 4, 1)
    assert progress["current"] == {"ready": 2, "started": 2, "processed": 2, "completed": 1}
    assert progress["total"]["ready"] == 8
    with pytest.raises(ValueError, match="not a whole number of steps"):
        rescale(progress, 4, 1)


ON_GPU = ("trainer.params.accelerator=gpu", "trainer.params.precision=bf16-mixed", "speed=default")


@pytest.mark.parametrize("on_gpu", [False, True], ids=["host", "GPU"])
def test_transfuser_too(in_process, navsim_tree, tmp_path, on_gpu, request):
    """NAVSIM's own, unedited: dropout, batch statistics, resizing and its callback's pictures."""
    if on_gpu:
        request.getfixturevalue("cuda")
    write_cache(tmp_path / "cache", samples=16, logs=4, seed=0)
    backbone = write_random_backbone("resnet34", tmp_path / "backbone")
    settings = (
        "agent=transfuser_agent",
        f"+agent.config.image_architecture='local-dir:{backbone}'",
        f"cache_path={tmp_path / 'cache'}",
        "data.val_fraction=0.25",
        "global_batch=4",  # three steps
        "trainer.params.max_epochs=1",
        *(ON_GPU if on_gpu else ()),
    )
    whole, parts = (f"run_dir={tmp_path / name}" for name in ("whole", "parts"))
    in_process(*settings, whole)
    stop = StopRequest()
    stop.ask(signal.SIGTERM)
    with pytest.raises(StoppedEarly, match="after step 1;"):
        in_process(*settings, parts, request=stop)
    in_process(*settings, parts)
    assert_same(end_of(tmp_path / "parts"), end_of(tmp_path / "whole"))


def test_a_full_disk_ends_no_training_before_its_last_checkpoint(train_here, tmp_path):
    """No file can grow past 12 kB, and a checkpoint has 17: all else goes on, and says so."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    train_here(tmp_path / "run", "trainer.params.max_epochs=1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        with pytest.raises(
            ConvoyError, match="its last state is lost. The checkpoint .* could not"
        ):
            train_here(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run = RunDirectory(tmp_path / "run")
    assert [path.name for path in run.step_checkpoints()] == ["step-000000003.ckpt"]
    verify(run.last_checkpoint)
    assert [event["kind"] for event in read(run)][-1] == "failure"
    assert list(csv.DictReader((run.metrics / "version_1/metrics.csv").open()))[-1]["step"] == "8"
    train_here(tmp_path / "run")
    assert load(run.last_checkpoint)["global_step"] == 9


@pytest.mark.parametrize("limit", [{"max_steps": 9}, {"max_epochs": 3}], ids=str)
def test_no_loop_restarts_once_a_resumed_training_goes_on(limit):
    """Found by the chaos suite: with max_steps, the epoch after a resumed one had one batch."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **limit)
    loop = trainer.fit_loop
    loop._restarting = loop.epoch_loop._restarting = True
    went_on(trainer)
    assert not loop.restarting and not loop.epoch_loop.restarting
