import os
import shutil
import threading
import time

import pytest
import torch

from convoy.data import staging
from convoy.data.cache import Builders
from convoy.data.shard import Builder
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shard_writer import ShardWriter
from convoy.data.shards import Manifest, load_manifest, shard_path, write_manifest
from convoy.data.staging import StagedShards, Staging, staged_folder
from convoy.errors import ConvoyError


@pytest.fixture
def root(tmp_path):
    shards = []
    for log in "abcd":
        with ShardWriter(tmp_path / "set", log, 0, None) as writer:
            for row in range(6):
                writer.add(
                    f"{log}{row}", {"x": {"value": torch.full((3000,), float(ord(log) * 10 + row))}}
                )
            shards.append(writer.finish({}))
    write_manifest(tmp_path / "set", Manifest((Builder("x", "feature"),), {}, tuple(shards)))
    return tmp_path / "set"


@pytest.fixture
def shards(root):
    return load_manifest(root).shards


@pytest.fixture
def folder(tmp_path, shards):
    return staged_folder(tmp_path / "node", shards)


def stage(root, shards, folder, **options):
    work = Staging(root, shards, folder, **options)
    work.start()
    work.wait()
    return work


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_copies_are_whole_and_used(root, shards, folder):
    seen = []
    work = stage(root, shards, folder, progress=lambda done, total: seen.append((done, total)))
    assert work.bytes == sum(shard.bytes for shard in shards) and work.reused == 0
    assert max(seen) == (work.bytes, work.bytes)
    assert names(folder) == [f"{log}-000.safetensors" for log in "abcd"]
    shutil.rmtree(root / "shards")  # what is read now comes from the copy
    assert values(root, shards, StagedShards(folder)) == [
        ord(log) * 10 + row for log in "abcd" for row in range(6)
    ]


def values(root, shards, staged):
    manifest = Manifest((), {}, shards)
    split = split_of(manifest, root, manifest.logs)
    reader = ShardReader(2, False, staged)
    loader = ShardLoader(split, Builders(("x",), ()), list(range(24)), 5, reader, 2)
    return [value for features, _ in loader for value in features["value"][:, 0].tolist()]


def test_the_next_job_on_the_node_finds_them(root, shards, folder):
    stage(root, shards, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = stage(root, shards, folder)
    assert again.bytes == 0 and again.reused == sum(shard.bytes for shard in shards)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_copy_of_the_wrong_size_is_made_again(root, shards, folder):
    stage(root, shards, folder)
    os.truncate(folder / "b-000.safetensors", 10)
    assert StagedShards(folder)(shards[1]) is None
    assert stage(root, shards, folder).bytes == shards[1].bytes
    assert (folder / "b-000.safetensors").read_bytes() == shard_path(root, "b-000").read_bytes()


def test_other_data_has_another_folder(tmp_path, shards, folder):
    assert staged_folder(tmp_path / "node", shards[:3]) != folder
    assert staged_folder(tmp_path / "node", tuple(reversed(shards))) == folder


def test_reading_goes_on_while_copying(root, shards, folder, monkeypatch):
    """Copies appear one by one; what is not there yet is read where it always was."""
    gate = threading.Semaphore(0)
    copy = Staging._copy
    monkeypatch.setattr(Staging, "_copy", lambda self, shard: (gate.acquire(), copy(self, shard)))
    work = Staging(root, shards, folder)
    work.start()
    expected = [ord(log) * 10 + row for log in "abcd" for row in range(6)]
    staged = StagedShards(folder)
    assert values(root, shards, staged) == expected and names(folder) == []
    gate.release()
    while not names(folder) or names(folder)[0].startswith("."):
        time.sleep(0.005)
    assert values(root, shards, staged) == expected
    gate.release(10)
    work.wait()
    assert values(root, shards, staged) == expected and len(staged._found) == 4


def test_a_part_is_staged_up_to_a_limit(root, shards, folder):
    work = stage(root, shards, folder, most_bytes=2.5 * shards[0].bytes)
    assert work.bytes == 2 * shards[0].bytes and names(folder) == [
        "a-000.safetensors",
        "b-000.safetensors",
    ]
    assert values(root, shards, StagedShards(folder))[-1] == ord("d") * 10 + 5


def test_too_little_room_is_told_before_anything_is_copied(root, shards, folder, monkeypatch):
    usage = shutil.disk_usage(root)._replace(free=staging.RESERVED + shards[0].bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (folder.parent / "convoy-older").mkdir(parents=True)
    with pytest.raises(
        ConvoyError, match=r"data.stage: 0.0 GB are to be copied.*data.stage_gb=0.*convoy-older"
    ):
        Staging(root, shards, folder)
    assert names(folder) == []


def test_a_damaged_shard_is_never_staged_and_stops_the_training(root, shards, folder):
    path = shard_path(root, "c-000")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    work = Staging(root, shards, folder)
    work.start()
    with pytest.raises(ConvoyError, match=f"{path} does not have the checksum"):
        work.wait()
    assert "c-000.safetensors" not in names(folder) and not any(
        name.endswith(".tmp") for name in names(folder)
    )
    with pytest.raises(ConvoyError, match="checksum"):
        work.check()


def test_closing_stops_and_starting_again_goes_on(root, shards, folder):
    work = Staging(root, shards, folder)
    work.close()
    work.start()
    work.wait()
    work.start()
    assert len(names(folder)) == 4


def test_a_folder_that_cannot_be_made(root, shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConvoyError, match="data.stage: .* cannot be made"):
        Staging(root, shards, tmp_path / "file" / "x")


def test_leftovers_of_killed_jobs_are_removed(root, shards, folder):
    folder.mkdir(parents=True)
    old, new = folder / ".a-000.safetensors.1.tmp", folder / ".b-000.safetensors.2.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    stage(root, shards, folder)
    assert not old.exists() and new.exists()
