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
from convoy.data.staging import StagedShards, Staging, make_private, staged_folder
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
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".checked"))


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
    make_private(folder.parent / "older")
    with pytest.raises(
        ConvoyError, match=r"data.stage: 0.0 GB are to be copied.*data.stage_gb=0.*older"
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


def test_a_copy_that_was_changed_is_not_read_and_is_made_again(root, shards, folder):
    """Of the same size and time: what identifies a file shows that it was written to."""
    stage(root, shards, folder)
    path = folder / "b-000.safetensors"
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size
    assert StagedShards(folder)(shards[1]) is None
    assert stage(root, shards, folder).bytes == shards[1].bytes
    assert path.read_bytes() == content and StagedShards(folder)(shards[1]) == path


def test_contents_are_read_once_again_after_the_node_came_back(root, shards, folder, monkeypatch):
    stage(root, shards, folder)
    before = {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}
    (folder.parent / "boot").write_text("another boot")
    monkeypatch.setattr(staging, "BOOT", folder.parent / "boot")
    path = folder / "c-000.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # a crash can leave zeros
    assert StagedShards(folder)(shards[0]) is None
    stage(root, shards, folder)
    after = {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}
    assert [name for name in before if before[name] != after[name]] == ["c-000.safetensors"]
    assert all(StagedShards(folder)(shard) for shard in shards)


def test_the_folder_is_this_users_own(root, shards, folder, tmp_path):
    stage(root, shards, folder)
    for each in (folder, folder.parent):
        assert each.stat().st_mode & 0o777 == 0o700
    assert folder.parent.name == f"convoy-{os.geteuid()}"


def of_others(folder, monkeypatch):
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)


def open_to_all(folder, monkeypatch):
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def a_link(folder, monkeypatch):
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder.parent.parent / "elsewhere"
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


@pytest.mark.parametrize(
    ("made", "told"),
    [(of_others, "belongs to user"), (open_to_all, "by others .mode 0777"), (a_link, "is a link")],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_folder_that_others_made_is_refused(root, shards, folder, made, told, depth, monkeypatch):
    """On every rank, not only on the one that copies."""
    if depth == 0:
        folder.parent.mkdir(parents=True, mode=0o700)
    made(folder if depth == 0 else folder.parent, monkeypatch)
    for use in (lambda: StagedShards(folder), lambda: Staging(root, shards, folder)):
        with pytest.raises(ConvoyError, match=f"data.stage: .*{told}.*cannot be relied on"):
            use()


def test_two_users_have_a_folder_each(shards, tmp_path, monkeypatch):
    mine = staged_folder(tmp_path, shards)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    theirs = staged_folder(tmp_path, shards)
    assert theirs.parent.name == "convoy-4711" and mine.name == theirs.name and mine != theirs


def test_a_link_in_the_place_of_a_copy_is_not_followed(root, shards, folder, tmp_path):
    make_private(folder)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(shards[0].bytes))
    (folder / "a-000.safetensors").symlink_to(secret)
    stage(root, shards, folder)
    assert secret.read_bytes() == bytes(shards[0].bytes)
    assert not (folder / "a-000.safetensors").is_symlink()


def test_a_folder_that_cannot_be_made(root, shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConvoyError, match="data.stage: .* cannot be made"):
        Staging(root, shards, tmp_path / "file" / "x" / "y")


def test_leftovers_of_killed_jobs_are_removed(root, shards, folder):
    make_private(folder)
    old, new = folder / ".a-000.safetensors.1.tmp", folder / ".b-000.safetensors.2.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    stage(root, shards, folder)
    assert not old.exists() and new.exists()
