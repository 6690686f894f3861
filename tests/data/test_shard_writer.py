import hashlib
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from convoy.data.packing import split_record, unpack
from convoy.data.shard_writer import ShardWriter
from convoy.data.shards import read_entry, shard_path
from convoy.data.values import NotPackable


def one(values):
    return {"b": {"x": values, "y": torch.zeros(2)}}


def read_back(root, shard):
    """By safetensors' own reader."""
    path = shard_path(root, shard.name)
    with safe_open(path, "numpy") as file:
        records = file.get_tensor("records")
    assert (
        hashlib.sha256(records.tobytes()).hexdigest() == shard.sha256
        and path.stat().st_size == shard.bytes
    )
    assert len(records) == len(shard.tokens) or shard.offsets is not None
    field, content = shard.layout.fields[0], path.read_bytes()
    spans = [shard.span(row) for row in range(len(shard.tokens))]
    return [
        unpack(field, split_record(shard.layout, content[start:end])[0]) for start, end in spans
    ]


@pytest.mark.parametrize(
    "samples",
    [
        [torch.full((500,), float(number)) for number in range(4)],
        [torch.zeros(500), torch.rand(500), torch.zeros(500)],
        [
            torch.zeros(500),
            torch.full((500,), 0.2),
            torch.full((500,), 9.0),
            torch.full((500,), -1e6),
        ],
        [torch.zeros(500), torch.ones(700), torch.rand(3)],
    ],
    ids=["fits", "widened-at-once", "widened-twice", "shapes"],
)
def test_every_record_is_what_was_added_whatever_came_later(tmp_path, samples):
    with ShardWriter(tmp_path, "log", 3, None) as writer:
        for number, values in enumerate(samples):
            writer.add(f"t{number}", one(values))
        shard = writer.finish({"all": 1.0})
    assert read_entry(tmp_path, "log-003") == shard
    for values, back in zip(samples, read_back(tmp_path, shard), strict=True):
        assert np.array_equal(back, values.numpy())


def test_a_builder_may_use_its_memory_again(tmp_path):
    """A sample is written while the next one is made: also one that is stored as it is."""
    noise = torch.rand(2_000_000)  # which no smaller dtype holds
    memory = torch.empty_like(noise)
    with ShardWriter(tmp_path, "log", 0, None) as writer:
        for number in range(5):
            memory.copy_(noise).mul_(1 + number)
            writer.add(f"t{number}", one(memory))
        shard = writer.finish({})
    assert shard.layout.fields[0].packed == "float32"
    for number, back in enumerate(read_back(tmp_path, shard)):
        assert np.array_equal(back, noise.mul(1 + number).numpy())


def test_a_sample_that_is_refused_leaves_nothing(tmp_path):
    with ShardWriter(tmp_path, "log", 0, None) as writer:
        writer.add("a", one(torch.ones(500)))
        with pytest.raises(NotPackable):
            writer.add("b", {"b": {"x": torch.ones(500)}})
        with pytest.raises(NotPackable, match="token is there twice"):
            writer.add("a", one(torch.ones(500)))
        writer.fail("b", "reason")
        writer.add("c", one(torch.full((500,), 2.0)))
        shard = writer.finish({})
    assert shard.tokens == ("a", "c") and shard.failures[0].token == "b"
    assert [back[0] for back in read_back(tmp_path, shard)] == [1, 2]


def test_a_shard_without_samples_has_an_entry_and_no_file(tmp_path):
    with ShardWriter(tmp_path, "log", 0, None) as writer:
        writer.fail("a", "reason")
        writer.finish({})
    assert os.listdir(tmp_path / "shards") == ["log-000.json"]
    assert read_entry(tmp_path, "log-000").tokens == ()


def test_what_is_not_finished_leaves_no_trace(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "log", 0, None) as writer:
        writer.add("a", one(torch.ones(500)))
        raise RuntimeError
    assert os.listdir(tmp_path / "shards") == []


def test_an_earlier_shard_stays_until_the_new_one_is_whole(tmp_path):
    with ShardWriter(tmp_path, "log", 0, None) as writer:
        writer.add("a", one(torch.ones(500)))
        first = writer.finish({})
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "log", 0, None) as writer:
        writer.add("b", one(torch.zeros(500)))
        raise RuntimeError
    assert read_back(tmp_path, first)[0][0] == 1


def test_no_room_is_told_with_the_file(tmp_path):
    code = """
import sys, torch
from pathlib import Path
from convoy.data.shard_writer import ShardWriter, WriteError
try:
    with ShardWriter(Path(sys.argv[1]), "log", 0, None) as writer:
        for number in range(100):
            writer.add(str(number), {"b": {"x": torch.rand(10_000)}})
        writer.finish({})
except WriteError as error:
    print(error)
"""
    limit = (200_000, 200_000)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        text=True,
        capture_output=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "log-000.safetensors could not be written: File too large" in done.stdout
    assert os.listdir(tmp_path / "shards") == []
