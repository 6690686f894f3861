"""Files of a cache that somebody made up: nothing of them runs, and none ends more than itself."""

import gzip
import io
import os
import pickle
import struct
import time
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convoy.commands.__main__ import main
from convoy.data import pickles
from convoy.data.cache import read
from convoy.data.shards import load_manifest
from convoy.errors import ConvoyError


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Foreign:
    """A class of somebody's own."""


class Storage:
    """A tensor's storage whose content was made up."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def storage(values, **save):
    file = io.BytesIO()
    torch.save(values, file, **{"_use_new_zipfile_serialization": False} | save)
    return file.getvalue()


NUMBERS = torch.storage.TypedStorage(
    wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
)
FLOATS = storage(NUMBERS)
ZIPPED = {"_use_new_zipfile_serialization": True}
ARCHIVE = storage(NUMBERS, **ZIPPED)


def compressed(archive):
    import zipfile

    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(written, "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), 8)
    return written.getvalue()


def tensor(size, stride, offset=0, content=FLOATS):
    return Calls(
        torch._utils._rebuild_tensor_v2,
        Storage(content),
        offset,
        size,
        stride,
        False,
        OrderedDict(),
    )


def in_dict(*instructions):
    """A pickle of {"x": …} whose value is left by raw instructions."""
    return b"\x80\x04}\x8c\x01x" + b"".join(instructions) + b"s."


def laughs():
    value = [0.0]
    for _ in range(40):
        value = [value, value]
    return {"x": value}


def endless():
    value = []
    value.append(value)
    return {"x": value}


MALICIOUS = {
    "system": pickle.dumps({"x": Calls(os.system, "touch $MARK")}),
    "eval": pickle.dumps({"x": Calls(eval, "1")}),
    "getattr": pickle.dumps({"x": Calls(getattr, "a", "upper")}),
    "in-a-storage": pickle.dumps(
        {"x": tensor((1,), (1,), content=storage(Calls(os.system, "ls")))}
    ),
    "no-storage": pickle.dumps({"x": tensor((1,), (1,), content=storage({"a": 1}))}),
    "bomb": pickle.dumps({"x": tensor((4,), (1,), content=compressed(ARCHIVE))}),
    "in-an-archive": pickle.dumps(
        {"x": tensor((1,), (1,), content=storage(Calls(os.system, "ls"), **ZIPPED))}
    ),
    "defaults-of-a-function": in_dict(
        b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93", b"N}\x8c\x0c__defaults__Ns\x86b"
    ),
    "state-of-a-tensor": pickle.dumps({"x": tensor((1,), (1,))})[:-2] + b"}bs.",
}
REFUSED = {
    "foreign-class": (pickle.dumps({"x": Foreign()}), "test_pickles.Foreign .*data.trust_cache"),
    "sparse": (pickle.dumps({"x": torch.eye(2).to_sparse()}), "_rebuild_sparse_tensor, which no"),
    "objects": (pickle.dumps({"x": np.array([None])}), "an unknown numpy dtype|array of object"),
    "a-set": (pickle.dumps({"x": {1}}), "a set, which no batch"),
    "complex": (pickle.dumps({"x": 1j}), "holds builtins.complex, which no batch"),
    "namespace": (pickle.dumps({"x": SimpleNamespace(y=1)}), "asks for types.SimpleNamespace"),
    "laughs": (pickle.dumps(laughs()), "more values, or deeper in one another"),
    "endless": (pickle.dumps(endless()), "more values, or deeper in one another"),
    "deep-key": (b"\x80\x04}" + b")" + b"\x85" * 30_000 + b"Ns.", "more than 20000 tuples"),
    "list": (pickle.dumps([1]), "holds a list, not a dict"),
}
DAMAGED = {
    "cut-archive": pickle.dumps({"x": tensor((4,), (1,), content=ARCHIVE[:-9])}),
    "archive-of-fewer": pickle.dumps({"x": tensor((5,), (1,), content=ARCHIVE)}),
    "length-of-2^62": in_dict(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "string-of-2^62": in_dict(b"\x8d" + struct.pack("<Q", 1 << 62)),
    "frame-of-2^62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
    "memo-of-2^31": in_dict(b"Nr" + struct.pack("<I", 1 << 31)),
    "memo-of-10^12": in_dict(b"Np1000000000000\n"),
    "beyond-its-storage": pickle.dumps({"x": tensor((5,), (1,))}),
    "offset-beyond": pickle.dumps({"x": tensor((1,), (1,), offset=4)}),
    "negative": pickle.dumps({"x": tensor((2,), (-1,), offset=3)}),
    "cut-storage": pickle.dumps({"x": tensor((4,), (1,), content=FLOATS[:-5])}),
    "empty": b"",
    "nothing": b".",
}


def written(path, content):
    with gzip.open(path, "wb") as file:
        file.write(content)
    return path


def refusal(tmp_path, content):
    started = time.monotonic()
    with pytest.raises(ConvoyError) as caught:
        read(written(tmp_path / "x.gz", content))
    assert time.monotonic() - started < 5
    assert str(caught.value).startswith(str(tmp_path / "x.gz"))
    return str(caught.value)


@pytest.mark.parametrize("name", MALICIOUS)
def test_malice_is_called_what_it_is_and_does_not_run(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    told = refusal(tmp_path, MALICIOUS[name])
    assert "is a malicious pickle" in told and "find out who can write to" in told
    assert "trust" not in told and "elete" not in told and "weights_only" not in told
    assert not (tmp_path / "mark").exists()
    assert read(written(tmp_path / "y.gz", pickle.dumps({"x": torch.ones(2)})))["x"].sum() == 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_batch_can_be_made_of_is_refused(tmp_path, name):
    import re

    content, message = REFUSED[name]
    told = refusal(tmp_path, content)
    assert re.search(message, told), told
    assert ("trust_cache" in told) == (name in ("foreign-class", "namespace"))


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_takes_no_memory(tmp_path, name):
    assert "is damaged" in refusal(tmp_path, DAMAGED[name])


def test_sizes_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_BYTES", 1 << 20)
    for large in (
        pickle.dumps({"x": bytes(2 << 20)}),
        pickle.dumps({"x": torch.zeros(1).expand(1 << 10, 1 << 10, 1 << 10)}),
    ):
        assert "would unpack to more than" in refusal(tmp_path, large)
    several = gzip.compress(bytes(1 << 19)) * 3  # as many gzip members one after another
    with pytest.raises(pickles.TooLarge):
        pickles.decompress(several)
    for first, second in ((b"a", b"bc"), (b"ab", b"cd")):
        assert pickles.decompress(gzip.compress(first) + gzip.compress(second)) == first + second
    noise = os.urandom(1 << 15)
    assert pickles.decompress(gzip.compress(noise)) == noise
    with pytest.raises(EOFError):
        pickles.decompress(gzip.compress(noise)[:-20])


def test_too_little_memory_is_that_samples_and_no_reason_to_delete(
    ego_cache, tmp_path, monkeypatch
):
    load, first = pickles.load, []

    def short_of_memory(content):
        if not first.append(content) and len(first) == 40:  # after the samples that are probed
            raise MemoryError
        return load(content)

    monkeypatch.setattr(pickles, "load", short_of_memory)
    out = tmp_path / "out"
    assert main(["prepare", str(out), "--from-cache", str(ego_cache), "--workers=1"]) == 0
    (failure,) = load_manifest(out).failures
    assert "asks for more memory than there is" in failure.reason
    assert "elete" not in failure.reason


def test_devices_and_huge_files_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "x.gz").symlink_to("/dev/zero")
    with pytest.raises(ConvoyError, match="cannot be read .it is a device, not a file"):
        read(tmp_path / "x.gz")
    with (tmp_path / "y.gz").open("wb") as file:
        file.truncate(pickles.MOST_BYTES + 1)  # takes no room
    with pytest.raises(ConvoyError, match="bytes are more than a sample has"):
        read(tmp_path / "y.gz")


@pytest.mark.parametrize("protocol", [4, 5])
def test_what_builders_give_is_read(protocol):
    given = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
        "expanded": torch.ones(1).expand(2, 3),
        "strided": torch.arange(6)[::2],
        "size": torch.Size([1, 2]),
        "big-endian": np.arange(3, dtype=">f4"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "numpy string": np.str_("é"),
        "scalar": np.float16(1.5),
    }
    given["archived"] = tensor((4,), (1,), content=ARCHIVE)
    read_back = pickles.load(pickle.dumps(given, protocol=protocol))
    given["archived"] = torch.ones(4)
    assert list(read_back) == list(given)
    for name, value in given.items():
        mine = read_back[name]
        if isinstance(value, torch.Tensor):
            assert mine.dtype == value.dtype and torch.equal(mine, value.detach()), name
            assert not mine.requires_grad
        else:
            assert np.array_equal(mine, value), name
    assert type(read_back["scalar"]) is np.float16 and read_back["big-endian"].dtype == np.float32


def test_one_bad_file_costs_prepare_its_sample_only(ego_cache, tmp_path, capsys):
    tokens = sorted(ego_cache.glob("*/*"))
    crafted = [MALICIOUS["system"], DAMAGED["length-of-2^62"], REFUSED["deep-key"][0]]
    for token, content in zip(tokens[1::9], crafted, strict=False):
        written(token / "ego_status_feature.gz", content)
    out = tmp_path / "out"
    assert main(["prepare", str(out), "--from-cache", str(ego_cache), "--workers=1"]) == 0
    manifest = load_manifest(out)
    assert manifest.samples == 32 - 3
    assert [f.token for f in manifest.failures] == [token.name for token in tokens[1::9][:3]]
    assert "is a malicious pickle" in manifest.failures[0].reason
    assert "3 samples were left out" in capsys.readouterr().out
