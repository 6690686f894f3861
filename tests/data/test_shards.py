import json
from dataclasses import replace

import pytest

from convoy.data.layout import Field, Layout
from convoy.data.shard import RECORDS_AT, Builder, Failure, Shard
from convoy.data.shards import Manifest, load_manifest, read_entry, write_entry, write_manifest
from convoy.errors import ConvoyError

FIELD = Field("b", "x", "float32", "uint8", 255, 2, (4, 8))
LAYOUT = Layout((FIELD, Field("b", "y", "bool", "bool", 1, 1, (1,))))
VARYING = Layout((FIELD, Field("b", "y", "bool", "bool", 1, 1, None)))


def shard(log, tokens, layout=LAYOUT, **changes):
    length = layout.record_bytes or 0
    size = RECORDS_AT + length * len(tokens) if tokens else 0
    entry = Shard(log, 0, layout, tuple(tokens), size, "0" * 64)
    return replace(entry, **changes)


MANIFEST = Manifest(
    (Builder("b", "feature", "module.B", {"size": 3}),),
    {"source": "cache"},
    (
        shard("log-a", ["t1", "t2"]),
        shard("log-b", ["t3"], layout=VARYING, bytes=306, offsets=(256, 306)),
        shard("log-c", [], failures=(Failure("log-c", "t4", "because"),), seconds={"all": 1.5}),
    ),
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "shards").mkdir()
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


def edit(root, **changes):
    path = root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_manifest_comes_back(root):
    manifest = load_manifest(root)
    assert manifest == MANIFEST
    assert (
        manifest.samples == 3
        and manifest.bytes == 256 + 33 * 2 + 306
        and manifest.logs == ("log-a", "log-b", "log-c")
    )
    assert manifest.layouts == (LAYOUT, VARYING)
    assert [failure.token for failure in manifest.failures] == ["t4"]


def test_layouts_are_shared_objects(root):
    write_manifest(root, Manifest((), {}, (shard("a", ["1"]), shard("b", ["2"]))))
    first, second = load_manifest(root).shards
    assert first.layout is second.layout


def test_an_entry_comes_back(tmp_path):
    (tmp_path / "shards").mkdir()
    for entry in MANIFEST.shards:
        assert read_entry(tmp_path, entry.name) is None
        write_entry(tmp_path, entry)
        assert read_entry(tmp_path, entry.name) == entry


def test_offsets_follow_the_fields():
    assert LAYOUT.record_bytes == 33 and LAYOUT.offsets == {("b", "x"): 0, ("b", "y"): 32}
    assert VARYING.record_bytes is None and VARYING.header_bytes == 8


def test_no_manifest(tmp_path):
    with pytest.raises(ConvoyError, match="manifest.json is missing: no packed shards are there"):
        load_manifest(tmp_path)


def test_a_preparation_that_was_not_finished(tmp_path):
    (tmp_path / "shards").mkdir()
    write_entry(tmp_path, MANIFEST.shards[0])
    with pytest.raises(
        ConvoyError, match=r"was not finished \(1 shards are\).*same `convoy prepare`"
    ):
        load_manifest(tmp_path)


def test_another_version_is_refused(root):
    edit(root, version=3)
    with pytest.raises(ConvoyError, match="is of version 3, and this Convoy reads .* up to 2"):
        load_manifest(root)


def test_another_format_is_refused(root):
    edit(root, format="mds")
    with pytest.raises(ConvoyError, match="is not a manifest of packed shards"):
        load_manifest(root)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\x80\x04", b"[]", b'{"format": "convoy-shards", "version": 1}']
)
def test_a_damaged_manifest_is_named(root, damage):
    (root / "manifest.json").write_bytes(damage)
    with pytest.raises(ConvoyError, match=str(root / "manifest.json")):
        load_manifest(root)


def test_a_manifest_that_contradicts_itself_is_refused(root):
    content = json.loads((root / "manifest.json").read_text())
    content["shards"][0]["bytes"] += 1
    edit(root, **content)
    with pytest.raises(ConvoyError, match="is damaged"):
        load_manifest(root)


@pytest.mark.parametrize(
    "field",
    [
        replace(FIELD, dtype="float64"),
        replace(FIELD, name="other"),
        replace(FIELD, ndim=3, shape=(4, 8, 1)),
    ],
    ids=["dtype", "name", "dimensions"],
)
def test_mixed_schemas_are_refused(root, field):
    other = Layout((field, LAYOUT.fields[1]))
    write_manifest(root, Manifest((), {}, (shard("a", ["1"]), shard("b", ["2"], layout=other))))
    with pytest.raises(
        ConvoyError, match="The shards a-000 and b-000 have different schemas: b.(x|other)"
    ):
        load_manifest(root)


def test_another_packing_is_no_other_schema(root):
    other = Layout((replace(FIELD, packed="float32", divisor=1), LAYOUT.fields[1]))
    manifest = Manifest((), {}, (shard("a", ["1"]), shard("b", ["2"], layout=other)))
    write_manifest(root, manifest)
    assert load_manifest(root) == manifest


def test_duplicate_tokens_are_refused(root):
    write_manifest(root, Manifest((), {}, (shard("a", ["1", "2"]), shard("b", ["2"]))))
    with pytest.raises(ConvoyError, match="token 2 is in two shards, a-000 and b-000"):
        load_manifest(root)


def test_host_tools_read_manifests_without_torch_or_numpy(root):
    import subprocess
    import sys

    code = (
        "import sys; from convoy.commands.__main__ import main; assert main(['data', 'ls', "
        "sys.argv[1]]) == 0; print(sorted({'torch', 'numpy', 'navsim'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root], text=True, capture_output=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
