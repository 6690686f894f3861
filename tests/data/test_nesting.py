"""Whatever NAVSIM's default_collate takes comes the same from a gzip cache and from shards."""

import gzip
import json
import pickle
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from convoy.commands.__main__ import main
from convoy.data import nesting
from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, scan
from convoy.data.layout import layout_from_json, layout_to_json
from convoy.data.packing import pack
from convoy.data.shard_loader import ShardLoader, ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shards import load_manifest
from convoy.data.values import NotPackable

BUILDERS = Builders(("inputs", "status"), ("targets",))
Pose = namedtuple("Pose", "x heading")


def everything(number):
    """One of each kind of value, at different depths."""
    rng = np.random.default_rng(number)
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, 16, 24), generator=generator).float() / 255
    return {
        "inputs": {
            "cameras": [image, image.flip(0)],
            "by name": {"front": image[:1], 0: {"deep": (torch.tensor(number), [image[0]])}},
            "ordered": OrderedDict(b=torch.ones(2), a=torch.zeros(0, 3)),
            "empty": [{}, []],
        },
        "status": {
            "array": rng.normal(size=(3, 2)).T,
            "uint16": np.array([number, 65535], np.uint16),
            "complex": torch.tensor([complex(number, 1)]).conj(),
            "scalar": np.float32(number / 3),
            "flag of numpy": np.bool_(number % 2),
            "count": number,
            "speed": number / 7,
            "moving": number % 2 == 0,
            "token": f"{number:04d}" * (1 + number % 3),
            "bytes": bytes([number, 0, 255]),
            "names": ["é" * number, {"inner": "x"}],
            "half": torch.full((2,), number, dtype=torch.float8_e5m2),
            "view": torch.arange(6.0).reshape(2, 3).T[:, ::2],
        },
        "targets": {"trajectory": torch.full((8, 3), float(number)), "grid": torch.ones(40, 40)},
    }


def write_cache(root, make, samples=6, tokens="{:03d}"):
    for number in range(samples):
        folder = root / f"log-{number % 2}" / tokens.format(number)
        folder.mkdir(parents=True)
        for builder, values in make(number).items():
            with gzip.open(folder / f"{builder}.gz", "wb", compresslevel=1) as file:
                pickle.dump(values, file)
    return root


def require_same(one, other, where=""):
    """The same types, dtypes and bits, all the way down."""
    assert type(one) is type(other), f"{where}: {type(one)} and {type(other)}"
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            require_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            require_same(mine, theirs, f"{where}.{number}")
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        equal = torch.equal if isinstance(one, torch.Tensor) else np.array_equal
        assert equal(one, other), where
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The cache's dataset, and the split of the shards that were prepared from it."""
    root = tmp_path_factory.mktemp("nested")
    cache, out = write_cache(root / "cache", everything), root / "out"
    assert main(["prepare", str(out), "--from-cache", str(cache), "--workers=1"]) == 0
    found = scan(cache, ["log-0", "log-1"], BUILDERS)
    manifest = load_manifest(out)
    split = split_of(manifest, out, manifest.logs)
    assert split.samples == found.samples and manifest.failures == ()
    return CacheDataset(CacheSplit(cache, found.samples), BUILDERS), split


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_those_of_the_gzip_cache(both, threads):
    theirs, split = both
    reader = ShardReader(threads, pinned=False)
    loader = ShardLoader(split, BUILDERS, [3, 0, 5, 1], 2, reader, 2)
    for batch, indices in zip(loader, ([3, 0], [5, 1]), strict=True):
        reference = collate([theirs[index] for index in indices])
        require_same(list(batch), reference)
        require_same(reference, default_collate([theirs[index] for index in indices]))


def test_batches_are_one_read_each_record(both):
    """Strings of different lengths and nesting do not make records that have to be parsed."""
    assert {shard.layout.record_bytes is not None for shard in both[1].shards} == {True}


def test_samples_by_index_are_those_of_the_gzip_cache(both):
    theirs, split = both
    loader = ShardLoader(split, BUILDERS, [0], 1, ShardReader(0, False), 1)
    assert len(loader.dataset) == len(theirs) == 6 and loader.batch_size == 1
    for index in (0, 4, -1):
        require_same(loader.dataset[index], theirs[range(6)[index]])
    with pytest.raises(IndexError):
        loader.dataset[6]


def test_a_sample_is_what_the_builder_gave(both):
    features, targets = both[0][0]
    given = everything(0)
    require_same({key: features[key] for key in given["status"]}, given["status"])
    require_same(targets, given["targets"])
    require_same(features["by name"], given["inputs"]["by name"])


def test_named_tuples_keep_their_names(tmp_path):
    """From builders directly: a pickle of them asks for their class."""
    layout, packed = pack({"b": {"pose": Pose(torch.ones(2), "left")}}, None)
    again = layout_from_json(json.loads(json.dumps(layout_to_json(layout))))
    assert again == layout and again.version == 2
    tree = nesting.rebuild(again.trees["b"], lambda leaf, inside: leaf.name, batch=True)
    assert (tree["pose"].x, tree["pose"].heading) == ("pose.x", "pose.heading")
    assert type(tree["pose"]).__name__ == "Pose"


def test_dicts_of_tensors_keep_the_first_version():
    layout, _ = pack({"b": OrderedDict(x=torch.ones(2), y=torch.ones(3))}, None)
    assert layout.version == 1 and isinstance(layout_to_json(layout), list)
    for values in ({"x": np.ones(2)}, {"x": [torch.ones(2)]}, {"x": "text"}, {"x": 1}):
        assert pack({"b": values}, None)[0].version == 2
    assert pack({"b": {"x": torch.ones(2, dtype=torch.uint16)}}, None)[0].version == 2


def test_longer_texts_widen_the_room_and_keep_what_was_there(tmp_path):
    def make(number):
        return {"inputs": {"text": "x" * 20 * number}, "status": {}, "targets": {"n": number}}

    cache, out = write_cache(tmp_path / "cache", make), tmp_path / "out"
    assert main(["prepare", str(out), "--from-cache", str(cache), "--workers=1"]) == 0
    manifest = load_manifest(out)
    split = split_of(manifest, out, manifest.logs)
    rooms = {shard.layout.fields[0].shape for shard in split.shards}
    assert rooms <= {(64,), (128,)}
    loader = ShardLoader(split, BUILDERS, range(6), 6, ShardReader(0, False), 1)
    ((features, targets),) = list(loader)
    assert features["text"] == ["x" * 20 * number for number in targets["n"].tolist()]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": None}, "b.x is None, and batches are made of"),
        ({"x": [torch.ones(1), None]}, "b.x.1 is None"),
        ({"x": {1, 2}}, "b.x is a set"),
        ({"x": 1j}, "b.x is a complex"),
        ({"x": object()}, "b.x is an object"),
        ({"x": np.array(["a"])}, "b.x is a numpy array of <U1"),
        ({"x": np.array([None])}, "b.x is a numpy array of object"),
        ({"x": 2**63}, "b.x is 9223372036854775808, more than int64"),
        ({(1, 2): 1}, "b has a tuple as a key"),
        ({"x": {"y": 1}, "x.y": 2}, "b.x.y is the name of two values"),
        ([1, 2], "b gave a list, not a dict"),
    ],
)
def test_what_no_batch_can_be_made_of_is_named(values, message):
    with pytest.raises(NotPackable, match=message):
        pack({"b": values}, None)


def test_nesting_without_end_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(NotPackable, match="nested deeper than 32"):
        pack({"b": {"x": endless}}, None)
    wide = [0.0] * (nesting.MOST_LEAVES + 1)
    with pytest.raises(NotPackable, match="more than 10000 values: put numbers into an array"):
        pack({"b": {"x": wide}}, None)


def test_the_order_of_keys_may_differ_and_kinds_may_not():
    layout, _ = pack({"b": {"x": [1, 2], "y": {"p": 1, "q": 2.0}}}, None)
    same, packed = pack({"b": {"y": {"q": 4.0, "p": 3}, "x": [5, 6]}}, layout)
    assert same == layout and [values.item() for values in packed] == [5, 6, 3, 4.0]
    for values in (
        {"x": (1, 2), "y": {"p": 1, "q": 2.0}},
        {"x": [1, np.int64(2)], "y": {"p": 1, "q": 2.0}},
        {"x": {0: 1, 1: 2}, "y": {"p": 1, "q": 2.0}},
    ):
        with pytest.raises(NotPackable, match="of other kinds, or nested in another way"):
            pack({"b": values}, layout)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_of_differing_length_are_refused_as_navsims_collate_does(kind):
    one, other = {"x": {"y": kind([1, 2])}}, {"x": {"y": kind([1, 2, 3])}}
    with pytest.raises(RuntimeError, match="each element in list of batch should be of equal size"):
        default_collate([one, other])
    layout, _ = pack({"b": one}, None)
    said = "b.x.y has 3 values, in other samples 2, .* let the builder pad them, or stack them"
    with pytest.raises(NotPackable, match=said):
        pack({"b": other}, layout)


def test_what_cannot_be_stacked_is_told_by_the_cache_too():
    one, other = {"a": torch.ones(2), "b": 1}, {"a": torch.ones(3), "b": 1}
    told = str(collate([(one, {}), (other, {})]))
    assert told.startswith("No batch can be made of these samples: the feature 'a' (stack expects")
    assert "the target 'b' (batch must contain" in str(collate([({}, {"b": None})] * 2))
    assert "lacks the target 'x'" in str(collate([({}, {"x": 1}), ({}, {})]))
