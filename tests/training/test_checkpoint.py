import os
import resource

import pytest
import torch

from convoy.run.layout import RunDirectory
from convoy.topology import Topology
from convoy.training.checkpoint import (
    CheckpointFolder,
    CheckpointWriter,
    DamagedCheckpoint,
    UnfitCheckpoint,
    fingerprint,
    load,
    not_finite,
    verify,
)
from convoy.training.process_group import HostGroup
from convoy.training.resume import choose_checkpoint

SMALL, LARGE = {"weights": torch.zeros(10)}, {"weights": torch.zeros(1_000_000)}


@pytest.fixture
def full_disk():
    """No file of this process can grow past 64 KiB: the kernel refuses the write, as it does on a
    full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def writer():
    writer = CheckpointWriter()
    yield writer
    writer.teardown()


@pytest.fixture
def folder(tmp_path, writer):
    """Three checkpoints, of steps 1 to 3."""
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        path = run.step_checkpoint(step)
        writer.save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, path)
    writer.wait()
    return CheckpointFolder(run)


def test_writes_and_replaces(tmp_path, writer):
    path = tmp_path / "below" / "last.ckpt"
    for checkpoint in (LARGE, SMALL):
        writer.save_checkpoint(checkpoint, path)
        writer.wait()
        assert load(path)["weights"].shape == checkpoint["weights"].shape
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_what_is_written_is_the_state_of_the_call(tmp_path, writer):
    """The training changes its tensors while the thread writes."""
    weights = torch.zeros(3_000_000)
    views = {"whole": weights, "part": weights[:10]}
    for step in (1, 2):
        weights.fill_(step)
        writer.save_checkpoint(views, tmp_path / f"{step}.ckpt")
        weights.fill_(-1)
    writer.wait()
    for step in (1, 2):
        loaded = load(tmp_path / f"{step}.ckpt")
        assert (loaded["whole"] == step).all() and (loaded["part"] == step).all()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, writer, full_disk):
    path = tmp_path / "last.ckpt"
    writer.save_checkpoint(SMALL, path)
    writer.save_checkpoint(LARGE, path)
    writer.wait()
    assert "last.ckpt could not be written: " in writer.failure
    assert load(path)["weights"].shape == (10,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
    writer.save_checkpoint(SMALL, path)  # there is room again
    writer.wait()
    assert writer.failure is None


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_state_that_is_not_finite_is_refused(tmp_path, bad):
    path = tmp_path / "last.ckpt"
    good = {"state_dict": {"weight": torch.ones(3)}, "optimizer_states": [{"m": torch.ones(3)}]}
    poisons = (
        ("state_dict", {"weight": torch.tensor([1, float(bad)])}),
        ("optimizer_states", [{"state": {0: {"m": torch.tensor(float(bad))}}}]),
    )
    for key, poison in poisons:
        writer = CheckpointWriter(parameters=frozenset({"weight"}))
        writer.save_checkpoint(good, path)
        writer.save_checkpoint(good | {key: poison, "global_step": 7}, path)
        writer.wait()
        assert isinstance(writer.refusal, UnfitCheckpoint)
        assert "After step 7, 1 tensors" in str(writer.refusal)
        assert (load(path)["state_dict"]["weight"] == 1).all()
        writer.teardown()


def test_infinity_in_a_mask_is_fine_and_an_overflowing_sum_too():
    mask = torch.full((2, 2), float("-inf"))
    large = torch.full((10,), 3e38)
    assert not_finite({"state_dict": {"mask": mask, "w": large}}, frozenset({"w"})) == []
    assert not_finite({"state_dict": {"mask": mask}}, frozenset({"mask"})) == ["mask"]
    assert not_finite({"state_dict": {"mask": mask * 0}}, frozenset()) == ["mask"]


def test_what_could_not_be_loaded_again_is_refused(tmp_path, writer):
    writer.save_checkpoint({"state": CheckpointFolder}, tmp_path / "last.ckpt")
    writer.wait()
    assert "cannot be loaded again" in str(writer.refusal)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, ("touch ran",)

    path = tmp_path / "step-000000001.ckpt"
    torch.save({"a": Attack()}, path)
    with pytest.raises(DamagedCheckpoint, match="Convoy did not write it and does not load it"):
        load(path)


def test_rotation_keeps_the_newest_and_what_the_links_name(folder):
    run = folder.run
    folder.point(run.best_checkpoint, run.step_checkpoint(1))
    folder.point(run.last_checkpoint, run.step_checkpoint(3))
    folder.rotate(keep=1)
    names = ["best.ckpt", "last.ckpt", "step-000000001.ckpt", "step-000000003.ckpt"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == names
    assert load(run.best_checkpoint)["step"] == 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    place = data.index(torch.tensor(3.0).numpy().tobytes() * 3)
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(folder, caplog, damage):
    newest = folder.run.step_checkpoint(3)
    damage(newest)
    assert folder.newest_whole() == folder.run.step_checkpoint(2)
    assert str(newest) in caplog.text and "Falling back" in caplog.text


def test_without_a_whole_one_nothing_begins_anew_silently(folder):
    for path in folder.run.step_checkpoints():
        cut(path)
    with pytest.raises(DamagedCheckpoint, match="None of the 3 checkpoints"):
        folder.newest_whole()


def test_verify_and_fingerprint_tell_checkpoints_apart(folder):
    one, other = folder.run.step_checkpoint(1), folder.run.step_checkpoint(2)
    verify(one)
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)


class OtherRank(HostGroup):
    """What rank 1 of two sees, for a decision that rank 0 made."""

    def __init__(self, decision):
        super().__init__(Topology(rank=1, world_size=2, num_nodes=2, host="two"), None)
        self._decision = decision

    def on_rank_zero(self, work):
        return self._decision

    def gather(self, value):
        return [("one", None), value]


def test_a_rank_that_sees_another_checkpoint_says_so(folder, tmp_path):
    newest = folder.run.step_checkpoint(3)
    same = (newest.name, fingerprint(newest))
    assert choose_checkpoint(folder, OtherRank(same)) == newest
    for decision, said in (
        ((newest.name, "of another file"), "is not the one that rank 0 chose on rank 1 .two"),
        (("step-000000009.ckpt", "x"), "is not there on rank 1 .two"),
        (None, "rank 0 sees none, but step-000000003.ckpt is there on rank 1"),
    ):
        with pytest.raises(Exception, match=said):
            choose_checkpoint(folder, OtherRank(decision), patience=0)
