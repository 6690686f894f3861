import resource

import pytest
import torch

from convoy.errors import ConvoyError
from convoy.training.checkpoint import AtomicCheckpointIO

SMALL, LARGE = {"weights": torch.zeros(10)}, {"weights": torch.zeros(1_000_000)}


@pytest.fixture
def full_disk():
    """No file of this process can grow past 64 KiB: the kernel refuses the write, as it does on a
    full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "below" / "last.ckpt"
    for checkpoint in (LARGE, SMALL):
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        assert torch.load(path)["weights"].shape == checkpoint["weights"].shape
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, full_disk):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    with pytest.raises(ConvoyError, match="could not be written: .*The previous one is whole"):
        AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert torch.load(path)["weights"].shape == (10,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_first_checkpoint_that_fails_promises_no_earlier_one(tmp_path, full_disk):
    with pytest.raises(ConvoyError, match="There is no earlier one"):
        AtomicCheckpointIO().save_checkpoint(LARGE, tmp_path / "last.ckpt")
