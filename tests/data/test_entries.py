"""Manifests that lie: each lie is named, and nothing outside of the directory is touched."""

import json

import pytest
import torch

from convoy.commands.__main__ import main
from convoy.data.cache import Builders
from convoy.data.entries import require_name
from convoy.data.shard import Builder
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shard_writer import ShardWriter
from convoy.data.shards import Manifest, load_manifest, read_entry, write_manifest
from convoy.errors import ConvoyError


@pytest.fixture
def root(tmp_path):
    shards = []
    for log in "ab":
        with ShardWriter(tmp_path / "set", log, 0, None) as writer:
            for row in range(3):
                image = torch.arange(4096).remainder(7).float() / 5
                writer.add(f"{log}{row}", {"x": {"image": image, "name": [f"{log}{row}"]}})
            shards.append(writer.finish({"all": 1.0}))
    write_manifest(tmp_path / "set", Manifest((Builder("x", "feature"),), {}, tuple(shards)))
    return tmp_path / "set"


def edited(root, change):
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def of_shard(**values):
    return lambda content: content["shards"][0].update(values)


def of_field(number=0, **values):
    return lambda content: content["layouts"][0]["fields"][number].update(values)


LIES = {
    "divisor": (of_field(divisor=7), "not the one that its shard was written with"),
    "packed": (of_field(packed="int8"), "not the one that its shard was written with"),
    "name-of-a-field": (of_field(name="other"), "names other fields"),
    "dtype": (of_field(dtype="float128"), "unknown dtype"),
    "shape": (of_field(shape=[-1]), "do not go together"),
    "dimensions": (of_field(ndim=2), "do not go together"),
    "fraction": (of_field(divisor=0.5), "not a whole number"),
    "true": (of_field(shape=[True]), "not a whole number"),
    "parent": (of_shard(log="../../etc"), "not the name of a log"),
    "absolute": (of_shard(log="/etc/passwd"), "not the name of a log"),
    "dots": (of_shard(log=".."), "not the name of a log"),
    "nul": (of_shard(log="a\0b"), "not the name of a log"),
    "surrogate": (of_shard(log="a\ud800"), "not the name of a log"),
    "newline": (of_shard(tokens=["a0", "a\n1", "a2"]), "not the name of a token"),
    "number": (of_shard(tokens=["a0", 1, "a2"]), "not the name of a token"),
    "tokens": (of_shard(tokens="a0"), "tokens is not a list"),
    "long": (of_shard(log="a" * 300), "at most 200 bytes"),
    "part": (of_shard(part=-1), "part is -1"),
    "bytes": (of_shard(bytes=10**6), "has 1000000 bytes, its records"),
    "more-tokens": (of_shard(tokens=["a0", "a1", "a2", "a3"]), "its records"),
    "offsets": (of_shard(offsets=[256, 300]), "do not fit its layout"),
    "twice": (lambda content: content["shards"].append(content["shards"][0]), "is there twice"),
    "other-layout": (of_shard(layout=5), "out of range"),
    "no-layout": (of_shard(layout="x"), "is damaged"),
    "builders": (lambda content: content.update(builders=[{"name": 3}]), "is damaged"),
    "origin": (lambda content: content.update(origin=[]), "is damaged"),
    "version": (lambda content: content.update(version=True), "is damaged|is of version"),
    "failures": (of_shard(failures=[{"log": 1}]), "is damaged"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(root, lie):
    change, message = LIES[lie]
    path = edited(root, change)
    with pytest.raises(ConvoyError, match=message) as caught:
        load_manifest(root)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    str(caught.value).encode()


def test_a_preparation_that_leads_out_of_the_directory(ego_cache, tmp_path, capsys):
    command = ["prepare", str(tmp_path / "out"), "--from-cache", str(ego_cache), "--workers=1"]
    assert main(command) == 0
    path = tmp_path / "out/preparation.json"
    content = json.loads(path.read_text())
    content["units"][0]["log"] = "../../outside"
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(command) == 1
    assert "not the name of a log" in capsys.readouterr().err
    assert not list(tmp_path.glob("outside*")) and not list(tmp_path.glob("*/outside*"))


def test_json_without_end(root):
    (root / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(ConvoyError, match="cannot be read"):
        load_manifest(root)


def test_an_entry_of_another_shard(root):
    entry = root / "shards/a-000.json"
    entry.write_text((root / "shards/b-000.json").read_text())
    with pytest.raises(ConvoyError, match="is damaged .it is the entry of b-000"):
        read_entry(root, "a-000")
    entry.write_text(entry.read_text().replace('"divisor":5', '"divisor":6'))
    with pytest.raises(ConvoyError, match="not the one that its shard was written with"):
        read_entry(root, "b-000" if not entry.exists() else "a-000")


def test_what_an_older_convoy_wrote_is_read(tmp_path):
    """Version 1, without checksums of layouts."""
    with ShardWriter(tmp_path, "a", 0, None) as writer:
        writer.add("a0", {"x": {"image": torch.ones(2)}})
        shard = writer.finish({})
    write_manifest(tmp_path, Manifest((Builder("x", "feature"),), {}, (shard,)))
    path = edited(tmp_path, lambda content: content["shards"][0].pop("layout_sha256"))
    content = json.loads(path.read_text())
    assert content["version"] == 1 and isinstance(content["layouts"][0], list)
    manifest = load_manifest(tmp_path)
    split = split_of(manifest, tmp_path, manifest.logs)
    (batch,) = ShardLoader(split, Builders(("x",), ()), [0], 1, ShardReader(0, False), 1)
    assert batch[0]["image"].tolist() == [[1.0, 1.0]]


def test_reasons_of_others_are_one_plain_line(tmp_path):
    with ShardWriter(tmp_path, "a", 0, None) as writer:
        writer.fail("t\n1", "a [/red] \x1b[31m line\nand \ud800 more")
        (failure,) = writer.finish({}).failures
    assert failure.token == "t 1" and failure.reason == "a [/red]  [31m line and   more"
    failure.reason.encode()


@pytest.mark.parametrize(
    "name", ["a b", "é", "2021.05.12.22.00.38_veh-35_01008_01518", "-rf", "a:b,c"]
)
def test_odd_but_honest_names(name):
    assert require_name(name, "log") == name
