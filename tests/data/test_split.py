import pytest
from omegaconf import OmegaConf

from convoy.data.cache import logs_in
from convoy.data.split import choose_logs
from convoy.errors import ConvoyError


def settings(cache, **values):
    base = {
        "cache_path": str(cache),
        "train_logs": None,
        "val_logs": None,
        "data": {"val_fraction": 0.25},
    }
    return OmegaConf.create(base | values)


def test_configured_logs_are_taken_as_they_are(ego_cache):
    chosen = choose_logs(
        settings(ego_cache, train_logs=["log-1"], val_logs=["log-0", "log-2"]), logs_in(ego_cache)
    )
    assert (chosen.train, chosen.val) == (("log-1",), ("log-0", "log-2"))


def test_a_share_of_the_logs_is_held_out(ego_cache, monkeypatch):
    monkeypatch.setattr("convoy.navsim.tree.default_split", lambda: None)
    chosen = choose_logs(settings(ego_cache), logs_in(ego_cache))
    assert len(chosen.val) == 1
    assert sorted(chosen.train + chosen.val) == ["log-0", "log-1", "log-2", "log-3"]
    assert "val_fraction=0.25" in chosen.reason


def test_new_logs_do_not_move_old_ones_between_a_fixed_number_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("convoy.navsim.tree.default_split", lambda: None)
    for number in range(40):
        (tmp_path / f"log-{number}").mkdir()
    before = set(choose_logs(settings(tmp_path), logs_in(tmp_path)).val)
    for number in range(40, 48):
        (tmp_path / f"log-{number}").mkdir()
    after = set(choose_logs(settings(tmp_path), logs_in(tmp_path)).val)
    assert len(before & after) >= 8  # of 10: a hash threshold moves, a shuffle would keep 2 or 3


def test_navsims_split_where_it_fits(ego_cache, tmp_path, monkeypatch):
    split = tmp_path / "split.yaml"
    split.write_text("train_logs: [log-3, log-1, elsewhere]\nval_logs: [log-2]\n")
    monkeypatch.setattr("convoy.navsim.tree.default_split", lambda: split)
    chosen = choose_logs(settings(ego_cache), logs_in(ego_cache))
    assert (chosen.train, chosen.val, chosen.reason) == (
        ("log-1", "log-3"),
        ("log-2",),
        "NAVSIM's default split",
    )


def test_too_few_logs_to_hold_any_out(tmp_path, monkeypatch):
    monkeypatch.setattr("convoy.navsim.tree.default_split", lambda: None)
    (tmp_path / "log-0").mkdir()
    with pytest.raises(ConvoyError, match="has 1 log"):
        choose_logs(settings(tmp_path), logs_in(tmp_path))
