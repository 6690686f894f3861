import gzip
import os
import pickle
import shutil

import pytest
import torch

from convoy.data.cache import (
    Builders,
    CacheDataset,
    CacheSplit,
    collate,
    logs_in,
    read,
    require_complete,
    scan,
    skipped_samples,
)
from convoy.errors import ConvoyError

EGO = Builders(("ego_status_feature",), ("trajectory_target",))


def samples_of(cache):
    return scan(cache, logs_in(cache), EGO).samples


def test_scan_lists_the_tokens_of_the_wanted_logs_sorted(ego_cache):
    found = scan(ego_cache, ["log-2", "log-0", "not-there"], EGO)
    assert len(found.samples) == found.total == 16
    assert found.samples == tuple(sorted(found.samples))
    assert {sample.split("/")[0] for sample in found.samples} == {"log-0", "log-2"}
    assert found.lacking == {}


def test_scan_ignores_stray_files(ego_cache):
    (ego_cache / "notes.txt").touch()
    (ego_cache / "log-0" / "notes.txt").touch()
    assert len(samples_of(ego_cache)) == 32


def test_a_missing_file_is_named_with_its_builder_and_count(ego_cache):
    for token in sorted((ego_cache / "log-1").iterdir())[:3]:
        (token / "trajectory_target.gz").unlink()
    found = scan(ego_cache, logs_in(ego_cache), EGO)
    with pytest.raises(
        ConvoyError, match="'trajectory_target': 3 of 32 tokens lack trajectory_target.gz"
    ):
        require_complete(found, ego_cache, "train", skip_bad=False)
    require_complete(found, ego_cache, "train", skip_bad=True)
    assert len(found.samples) == 29


def test_a_cache_of_another_agent_is_refused_even_with_skip_bad(ego_cache):
    found = scan(
        ego_cache, logs_in(ego_cache), Builders(("transfuser_feature",), ("transfuser_target",))
    )
    with pytest.raises(ConvoyError, match="no train sample.*'transfuser_feature': 32 of 32"):
        require_complete(found, ego_cache, "train", skip_bad=True)


def test_reads_what_navsim_wrote(ego_cache):
    features, targets = CacheDataset(CacheSplit(ego_cache, samples_of(ego_cache)), EGO)[0]
    assert features["ego_status"].shape == (8,)
    assert targets["trajectory"].shape == (8, 3)
    assert targets["trajectory"].dtype == torch.float64


def test_collate_stacks(ego_cache):
    data = CacheDataset(CacheSplit(ego_cache, samples_of(ego_cache)), EGO)
    features, targets = collate([data[0], data[1], data[2]])
    assert features["ego_status"].shape == (3, 8)
    assert torch.equal(targets["trajectory"][1], data[1][1]["trajectory"])


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def not_gzip(path):
    path.write_bytes(b"not a gzip file")


def foreign_pickle(path):
    with gzip.open(path, "wb") as file:
        pickle.dump(["a", "list"], file)


def no_pickle(path):
    with gzip.open(path, "wb") as file:
        file.write(b"plain text")


def empty(path):
    path.write_bytes(b"")


def flipped_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def unknown_class(path):
    with gzip.open(path, "wb") as file:
        file.write(b"cnot_a_module\nThing\n.")


@pytest.mark.parametrize(
    "damage",
    [truncated, not_gzip, foreign_pickle, no_pickle, empty, flipped_byte, unknown_class],
    ids=lambda f: f.__name__,
)
def test_damage_names_the_file(ego_cache, damage):
    path = ego_cache / samples_of(ego_cache)[5] / "ego_status_feature.gz"
    damage(path)
    with pytest.raises(ConvoyError, match=str(path)):
        read(path)


def test_an_unreadable_sample_is_handed_on_as_its_error(ego_cache):
    samples = samples_of(ego_cache)
    truncated(ego_cache / samples[5] / "ego_status_feature.gz")
    data = CacheDataset(CacheSplit(ego_cache, samples), EGO)
    batch = collate([data[4], data[5]])
    assert isinstance(batch, ConvoyError)
    assert samples[5] in str(batch)


def test_skipping_takes_the_next_sample_and_notes_it(ego_cache, tmp_path):
    samples = samples_of(ego_cache)
    truncated(ego_cache / samples[5] / "ego_status_feature.gz")
    log = tmp_path / "skipped.jsonl"
    data = CacheDataset(CacheSplit(ego_cache, samples), EGO, skipped_log=log)
    assert torch.equal(data[5][0]["ego_status"], data[6][0]["ego_status"])
    assert skipped_samples(log) == {samples[5]}
    assert len(log.read_text().splitlines()) == 1


def test_a_cache_with_nothing_readable_says_so(ego_cache, tmp_path):
    samples = samples_of(ego_cache)[:3]
    for sample in samples:
        truncated(ego_cache / sample / "trajectory_target.gz")
    data = CacheDataset(CacheSplit(ego_cache, samples), EGO, skipped_log=tmp_path / "skipped.jsonl")
    assert "No sample" in str(data[0])


def test_permission_is_named(ego_cache, tmp_path):
    path = tmp_path / "gone" / "x.gz"
    with pytest.raises(ConvoyError, match="cannot be read .No such file"):
        read(path)


def test_equals_navsims_own_dataset(ego_cache, navsim_tree):
    """NAVSIM's CacheOnlyDataset is the reference: same tokens, same tensors."""
    from convoy.navsim.importing import make_importable

    make_importable()
    from navsim.planning.training.dataset import CacheOnlyDataset

    class Builder:
        def __init__(self, name):
            self.name = name

        def get_unique_name(self):
            return self.name

    shutil.rmtree(ego_cache / "log-3")
    os.remove(ego_cache / samples_of(ego_cache)[0] / "trajectory_target.gz")
    theirs = CacheOnlyDataset(
        str(ego_cache), [Builder(EGO.features[0])], [Builder(EGO.targets[0])], logs_in(ego_cache)
    )
    split = CacheSplit(ego_cache, samples_of(ego_cache))
    ours = CacheDataset(split, EGO)
    assert sorted(theirs.tokens) == sorted(sample.split("/")[1] for sample in split.samples)
    for index, sample in enumerate(split.samples):
        for mine, navsims in zip(
            ours[index], theirs[theirs.tokens.index(sample.split("/")[1])], strict=True
        ):
            assert mine.keys() == navsims.keys()
            assert all(torch.equal(mine[key], navsims[key]) for key in mine)
