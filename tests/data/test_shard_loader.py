"""The loader against the gzip cache: the same samples, the same order, the same bits."""

import gc
import gzip
import os
import pickle
import threading

import numpy as np
import pytest
import torch

from convoy.data import held_records, shard_loader
from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, scan
from convoy.data.held_records import HeldRecords
from convoy.data.packed_batch import PackedBatch
from convoy.data.shard import Builder
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import damaged_shards, require_builders, split_of
from convoy.data.shard_writer import ShardWriter
from convoy.data.shards import Manifest, load_manifest, shard_path, write_manifest
from convoy.errors import ConvoyError

BUILDERS = Builders(("camera", "status"), ("targets",))
HELD = (Builder("camera", "feature"), Builder("status", "feature"), Builder("targets", "target"))


def sample(number, width=40):
    generator = torch.Generator().manual_seed(number)
    return {
        "camera": {
            "image": torch.randint(0, 256, (3, 16, width), generator=generator).float() / 255
        },
        "status": {"status": torch.rand(5, generator=generator), "number": torch.tensor(number)},
        "targets": {
            "trajectory": torch.rand(4, 3, generator=generator, dtype=torch.float64),
            "labels": torch.rand(6, generator=generator) > 0.5,
            "classes": torch.randint(0, 7, (32, 32), generator=generator).float(),
        },
    }


def write(root, logs, make=sample):
    """Shards of several logs; sample k overall is `make(k)`.

    Tokens are in another order than their records.
    """
    shards, number = [], 0
    for log, count in logs.items():
        with ShardWriter(root, log, 0, None) as writer:
            for row in range(count):
                writer.add(f"{log[-1]}{(row * 7) % count:03d}", make(number))
                number += 1
            shards.append(writer.finish({}))
    write_manifest(root, Manifest(HELD, {}, tuple(shards)))
    return root


@pytest.fixture(autouse=True)
def read_from_disk(monkeypatch):
    """These few samples would be held in memory; the tests at the end are about that."""
    monkeypatch.setattr(held_records, "HELD_AT_MOST", 0)


@pytest.fixture
def held(read_from_disk, monkeypatch):
    monkeypatch.setattr(held_records, "HELD_AT_MOST", 1 << 20)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("set"), {"log-b": 9, "log-a": 13, "log-c": 11})


def open_split(root, logs=None):
    manifest = load_manifest(root)
    return split_of(manifest, root, manifest.logs if logs is None else logs)


def loader(split, order=None, batch_size=4, threads=2, builders=BUILDERS, prefetch=2, **options):
    order = range(len(split.samples)) if order is None else order
    reader = options.pop("reader", None) or ShardReader(threads, pinned=False)
    return ShardLoader(split, builders, list(order), batch_size, reader, prefetch, **options)


def original(split, index, make=sample):
    """What was written for the index-th sample of the split."""
    before = sum(len(shard.tokens) for shard in split.shards[: int(split.shard_of[index])])
    return make(before + int(split.row_of[index]))


def require_equal(batch, split, indices, builders=BUILDERS, make=sample):
    features, targets = batch
    expected = [original(split, index, make) for index in indices]
    for names, tensors in ((builders.features, features), (builders.targets, targets)):
        wanted = [(builder, name) for builder in names for name in expected[0][builder]]
        assert [name for _, name in wanted] == list(tensors)
        for builder, name in wanted:
            stacked = torch.stack([one[builder][name] for one in expected])
            assert tensors[name].dtype == stacked.dtype
            assert torch.equal(tensors[name], stacked), name


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_hold_what_was_written_in_the_samplers_order(root, threads):
    split = open_split(root)
    order = np.random.default_rng(1).permutation(33)
    batches = list(loader(split, order, threads=threads))
    assert len(batches) == len(loader(split, order)) == 9
    assert [batch.size for batch in batches] == [4] * 8 + [1]
    for number, batch in enumerate(batches):
        require_equal(batch, split, order[4 * number : 4 * number + 4])


def test_samples_are_named_and_sorted_as_those_of_a_cache(root):
    split = open_split(root, ["log-c", "log-a", "elsewhere"])
    assert len(split.samples) == 24 and split.logs == ("log-a", "log-c")
    assert split.samples == tuple(sorted(split.samples))
    assert split.samples[1] == "log-a/a001"
    whole = open_split(root)
    indices = [whole.samples.index(split.samples[index]) for index in (1, 23)]
    require_equal(next(iter(loader(split, [1, 23]))), whole, indices)


def test_a_split_survives_the_way_to_other_ranks(root):
    split = pickle.loads(pickle.dumps(open_split(root)))
    require_equal(next(iter(loader(split, [5, 30]))), split, [5, 30])


@pytest.mark.parametrize(
    "builders",
    [
        Builders(("status",), ("targets",)),
        Builders(("camera",), ()),
        Builders(("status", "camera"), ()),
    ],
    ids=["gap-before", "first-only", "other-order"],
)
def test_an_agent_with_some_of_the_builders_reads_only_those(root, builders, monkeypatch):
    split = open_split(root)
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: read.append(preadv(*args)) or read[-1])
    batch = next(iter(loader(split, [3, 8], builders=builders, threads=0)))
    require_equal(batch, split, [3, 8], builders)
    wanted = set(builders.names)
    each = sum(field.bytes for field in split.shards[0].layout.fields if field.builder in wanted)
    assert sum(read) == 2 * each


def test_builders_that_the_shards_lack_are_named(root):
    with pytest.raises(
        ConvoyError, match="hold nothing of the builder.s. lidar; .*camera, status, targets"
    ):
        require_builders(load_manifest(root), root, Builders(("lidar",), ("targets",)))


def test_taking_one_batch_reads_little_more_than_that(root, monkeypatch):
    """NAVSIM's TransfuserCallback calls next(iter(loader)) six times an epoch."""
    reads = []
    let_go = threading.Event()
    preadv, wait = os.preadv, shard_loader.wait

    def read(*arguments):
        reads.append(1)
        # What is read ahead lasts until the iterator was let go of.
        assert len(reads) <= 4 or let_go.wait(60)
        return preadv(*arguments)

    def wait_for_readers(futures):
        let_go.set()
        return wait(futures)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(shard_loader, "wait", wait_for_readers)
    reader = ShardReader(1, pinned=False)
    features, _ = next(iter(loader(open_split(root), prefetch=8, reader=reader)))
    assert features["image"].shape[0] == 4 and let_go.is_set()
    reader.close()
    assert len(reads) in (4, 2 * 4)  # its own four, and the four that the thread had perhaps begun


def test_iterating_again_begins_again(root):
    split = open_split(root)
    data = loader(split)
    first, again = next(iter(data)), next(iter(data))
    assert torch.equal(first[0]["image"], again[0]["image"])


def test_blocks_are_used_again_and_batches_that_live_are_not_overwritten(root):
    split = open_split(root)
    reader = ShardReader(2, pinned=False)
    data = loader(split, reader=reader)
    kept = next(iter(data))
    for _ in range(5):
        for _ in data:
            pass
    require_equal(kept, split, range(4))
    del kept
    gc.collect()
    assert len(reader.pool._free) <= 2 + 2  # read ahead, in use, kept


def test_decoded_tensors_outlive_the_batch(root):
    split = open_split(root)
    reader = ShardReader(0, pinned=False)
    features, targets = next(iter(loader(split, range(4), reader=reader)))
    for _ in loader(split, range(4, 33), reader=reader):
        pass
    require_equal((features, targets), split, range(4))


def test_the_same_bits_as_from_the_gzip_cache(tmp_path):
    """Written by NAVSIM's format, read by the cache's dataset and by the loader."""
    split = open_split(write(tmp_path / "set", {"x": 5, "y": 5}))
    for index, name in enumerate(split.samples):
        for builder, tensors in original(split, index).items():
            (tmp_path / "cache" / name).mkdir(parents=True, exist_ok=True)
            with gzip.open(
                tmp_path / "cache" / name / f"{builder}.gz", "wb", compresslevel=1
            ) as file:
                pickle.dump(tensors, file)
    found = scan(tmp_path / "cache", ["x", "y"], BUILDERS)
    assert found.samples == split.samples
    theirs = CacheDataset(CacheSplit(tmp_path / "cache", found.samples), BUILDERS)
    order = [7, 0, 9, 3, 3]
    ours = next(iter(loader(split, order, batch_size=5)))
    for mine, other in zip(ours, collate([theirs[index] for index in order]), strict=True):
        assert list(mine) == list(other)
        assert all(
            torch.equal(mine[name], other[name]) and mine[name].dtype == other[name].dtype
            for name in mine
        )


def test_batches_over_shards_that_are_packed_differently(tmp_path):
    def make(number):
        made = sample(number)
        if number == 7:  # not of the grid of 1/255
            made["camera"]["image"] = made["camera"]["image"] * 0.7
        return made

    split = open_split(write(tmp_path, {"a": 5, "b": 5, "c": 5}, make))
    packed = {shard.log: shard.layout.fields[0].packed for shard in split.shards}
    assert packed == {"a": "uint8", "b": "float32", "c": "uint8"}
    order = [0, 6, 11, 3, 7, 8, 14, 1]
    for threads in (0, 2):
        batches = list(loader(split, order, threads=threads))
        require_equal(batches[0], split, order[:4], make=make)
        require_equal(batches[1], split, order[4:], make=make)


def test_shapes_that_differ_are_told_when_they_meet_and_read_when_they_do_not(tmp_path):
    def make(number):
        return sample(number, width=40 + 8 * (number % 2))

    split = open_split(write(tmp_path, {"a": 6}, make))
    widths = [make(int(row))["camera"]["image"].shape[-1] for row in split.row_of]
    even = [index for index, width in enumerate(widths) if width == 40]
    require_equal(next(iter(loader(split, even))), split, even, make=make)
    for index in range(6):
        require_equal(next(iter(loader(split, [index], batch_size=1))), split, [index], make=make)
    with pytest.raises(
        ConvoyError, match=r"differ in the shape of camera.image \(3x16x40, 3x16x48\)"
    ):
        list(loader(split))


def damage_truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("damage", [damage_truncate, damage_remove])
def test_a_damaged_shard_is_named(tmp_path, damage, threads):
    split = open_split(write(tmp_path, {"a": 5, "b": 5}))
    path = shard_path(tmp_path, "b-000")
    damage(path)
    assert list(damaged_shards(split)) == ["b-000"]
    with pytest.raises(
        ConvoyError, match=f"{path} cannot be read: (it ends|No such file).*convoy data verify"
    ):
        list(loader(split, threads=threads))
    whole = split.without(damaged_shards(split))
    assert [name.split("/")[0] for name in whole.samples] == ["a"] * 5
    assert sum(batch.size for batch in loader(whole)) == 5


def test_short_reads_are_continued(root, monkeypatch):
    preadv = os.preadv

    def few(descriptor, buffers, offset):
        return preadv(descriptor, [buffers[0][:700]], offset)

    monkeypatch.setattr(os, "preadv", few)
    split = open_split(root)
    require_equal(next(iter(loader(split, [2, 9], threads=0))), split, [2, 9])


def test_more_shards_than_open_files(root):
    split = open_split(root)
    reader = ShardReader(2, pinned=False)
    reader._most_files = 1
    order = np.random.default_rng(2).permutation(33)
    for number, batch in enumerate(loader(split, order, reader=reader)):
        require_equal(batch, split, order[4 * number : 4 * number + 4])
    assert len(reader._files) == 1


def test_a_reader_works_on_after_it_was_closed(root):
    split = open_split(root)
    reader = ShardReader(2, pinned=False)
    data = loader(split, reader=reader)
    assert len(list(data)) == 9
    reader.close()
    assert reader._files == {} and len(list(data)) == 9


def test_what_the_check_raises_stops_the_loader(root):
    def check():
        raise ConvoyError("staging failed")

    with pytest.raises(ConvoyError, match="staging failed"):
        next(iter(loader(open_split(root), check=check)))


def test_a_batch_can_be_asked_like_a_pair(root):
    split = open_split(root)
    batch = next(iter(loader(split)))
    assert isinstance(batch, PackedBatch) and len(batch) == 2
    assert torch.equal(batch[0]["image"], batch.decode()[0]["image"])
    assert batch.to(torch.device("cpu")) is batch


def test_the_device_gives_the_same_bits(root, cuda):
    split = open_split(root)
    for batch, again in zip(loader(split), loader(split), strict=True):
        for mine, other in zip(batch.to(cuda).decode(), again.decode(), strict=True):
            assert all(torch.equal(mine[name].cpu(), other[name]) for name in other)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(
    "builders", [BUILDERS, Builders(("status",), ()), Builders(("camera",), ("targets",))]
)
def test_a_small_split_in_memory_gives_the_same_batches(root, held, threads, builders):
    split = open_split(root)
    order = np.random.default_rng(1).permutation(33)[:24]
    batches = loader(split, order, threads=threads, builders=builders)
    assert batches._held is not None
    for number, batch in enumerate(batches):
        require_equal(batch, split, order[4 * number : 4 * number + 4], builders)


def test_what_is_held_is_read_once(root, held):
    reader = ShardReader(2, pinned=False)
    batches = loader(open_split(root), reader=reader)
    list(batches)
    reader.close()
    assert len(list(batches)) == 9 and not reader._files


def test_what_is_large_or_uneven_is_read_from_disk(root, tmp_path, monkeypatch):
    split = open_split(root)
    length = split.shards[0].layout.record_bytes
    monkeypatch.setattr(held_records, "HELD_AT_MOST", 33 * length)
    assert HeldRecords.can_hold(split)
    monkeypatch.setattr(held_records, "HELD_AT_MOST", 33 * length - 1)
    assert not HeldRecords.can_hold(split) and loader(split)._held is None
    uneven = {"log-d": 2, "log-e": 2}
    mixed = write(tmp_path, uneven, lambda number: sample(number, 40 if number < 2 else 44))
    assert not HeldRecords.can_hold(open_split(mixed))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_shard_is_named_when_it_shall_be_held(tmp_path, held, threads):
    root = write(tmp_path, {"log-b": 9, "log-a": 13})
    path = shard_path(root, "log-a-000")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConvoyError, match=r"log-a-000.* cannot be read: it ends at byte"):
        list(loader(open_split(root), threads=threads))


def test_shards_that_are_left_out_are_not_read(tmp_path, held):
    root = write(tmp_path, {"log-b": 9, "log-a": 13})
    shard_path(root, "log-a-000").unlink()
    split = open_split(root)
    kept = split.without(damaged_shards(split))
    assert sum(batch.size for batch in loader(kept)) == 9
