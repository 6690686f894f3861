"""Python's own collector, with objects in a circle."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from convoy.run import garbage


class Circle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def looks(objects: int) -> list[int]:
    """How often each generation was looked through while so many objects came to stay."""
    seen = [0, 0, 0]

    def note(phase: str, info: dict[str, int]) -> None:
        seen[info["generation"]] += phase == "stop"

    gc.callbacks.append(note)
    try:
        kept = [[number] for number in range(objects)]
        assert len(kept) == objects
    finally:
        gc.callbacks.remove(note)
    return seen


def test_what_stays_is_not_looked_through_during_a_start():
    gc.collect()
    garbage.look_rarely()
    assert looks(200_000)[2] == 0
    garbage.look_as_usual()
    assert looks(2_000_000)[2] > 0


def test_what_dies_young_is_found_during_a_start_too():
    garbage.look_rarely()
    dead = weakref.ref(Circle())
    looks(20_000)
    assert dead() is None
