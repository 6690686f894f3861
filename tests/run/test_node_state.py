"""The signs that nodes leave in a run directory."""

from dataclasses import replace

from convoy.run import node_state
from convoy.run.layout import RunDirectory


def test_a_node_begins_and_ends(tmp_path):
    run = RunDirectory(tmp_path)
    state = node_state.begin(run, "7-0", "gl001")
    assert node_state.read(run, "7-0")["gl001"].is_silent
    node_state.write(run, "7-0", replace(state, exit_code=75))
    assert not node_state.read(run, "7-0")["gl001"].is_silent
    assert node_state.read(run, "7-1") == {}


def test_who_went_away_is_said_once(tmp_path):
    run = RunDirectory(tmp_path)
    assert node_state.lost(run, "7-0") == ()
    node_state.begin(run, "7-0", "gl001")
    for host in ("gl006", "gl011", "gl006"):
        node_state.lose(run, "7-0", host)
    assert node_state.lost(run, "7-0") == ("gl006", "gl011")
    assert list(node_state.read(run, "7-0")) == ["gl001"]


def test_what_cannot_be_read_is_left_out(tmp_path):
    run = RunDirectory(tmp_path)
    node_state.begin(run, "7-0", "gl001")
    run.node("7-0", "gl006").write_text("")
    assert list(node_state.read(run, "7-0")) == ["gl001"]
