"""Nodes compared: who differs, in what, and whose fault it is."""

import pytest

from convoy.launch.comparison import NOTHING, compare, fingerprint, resolved, word
from convoy.launch.peers import Gathering

HOSTS = ("gl001", "gl006", "gl011")


def said(**changes):
    usual = {"problems": [], "image": "sha256:a", "data": "4 logs b", "resolved": list(HOSTS)}
    return {**usual, **changes}


def compared(ahead=(0.0, 0.0, 0.0), **changes):
    """`changes` by host; the problems and the notes."""
    words = {host: said(**changes.get(host, {})) for host in HOSTS}
    return compare(Gathering(words, (), dict(zip(HOSTS, ahead, strict=True))))


def test_nodes_that_agree_have_no_problem():
    assert compared() == ({}, [])


@pytest.mark.parametrize(
    ("host", "changes", "problem"),
    [
        ("gl006", {"image": "sha256:z"}, "the image's content is sha256:z here, and sha256:a on"),
        ("gl001", {"image": "sha256:z"}, "the image's content is sha256:z here, and sha256:a on"),
        ("gl011", {"data": NOTHING}, "the data set is not there here, and 4 logs b on the other"),
        ("gl006", {"problems": ["GPUs: 3 of 4"]}, "GPUs: 3 of 4"),
        ("gl006", {"resolved": ["gl001", "gl006"]}, "the name of gl011 has no address here"),
    ],
)
def test_the_one_that_differs_is_named(host, changes, problem):
    problems, notes = compared(**{host: changes})
    assert list(problems) == [host] and notes == []
    assert problems[host][0].startswith(problem)


def test_of_two_nodes_the_first_is_right():
    words = {"gl001": said(), "gl006": said(data="3 logs c")}
    problems, _ = compare(Gathering(words, (), {}))
    assert problems == {"gl006": ["the data set is 3 logs c here, and 4 logs b on the other nodes"]}


def test_what_is_the_same_everywhere_is_no_nodes_fault():
    lacking = {host: {"resolved": [host]} for host in HOSTS}
    problems, notes = compared(**lacking)
    assert problems == {}
    assert notes[0] == "gl001: the name of gl006, gl011 has no address here"


@pytest.mark.parametrize(
    ("ahead", "problems", "notes"),
    [
        ((0.0, 0.2, -0.3), {}, []),
        ((0.0, 2.5, 0.0), {}, ["gl006: its clock is 2.5 s ahead"]),
        ((0.0, 0.0, -3600.0), {"gl011": ["its clock is 3600.0 s behind"]}, []),
        # The first node's own is the wrong one.
        ((0.0, 300.0, 300.0), {"gl001": ["its clock is 300.0 s behind"]}, []),
    ],
)
def test_clocks(ahead, problems, notes):
    assert compared(ahead) == (problems, notes)


def test_a_data_set_is_known_by_what_it_lists(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        for log in ("b", "a"):
            (folder / log).mkdir(parents=True)
    assert fingerprint(one) == fingerprint(other) and fingerprint(one).startswith("2 logs ")
    (other / "c").mkdir()
    assert fingerprint(one) != fingerprint(other)
    (one / "manifest.json").write_text("{}")
    assert fingerprint(one).startswith("shards ")
    assert fingerprint(tmp_path / "nothing") == NOTHING


def test_names_are_looked_up_here(tmp_path):
    assert resolved(["localhost", "no-such-host.invalid"]) == ["localhost"]
    found = word(["localhost"], tmp_path, None, ["too slow"])
    assert found["problems"] == ["too slow"] and found["resolved"] == ["localhost"]
