"""What is found of a pickle's end, and what is refused, against Python's own table reader."""

import pickle
import pickletools
import random
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch

from convoy.data.instructions import MOST_TUPLES, Excessive, look_through

VALUES = [
    {"tensor": torch.arange(6.0).reshape(2, 3), "array": np.eye(3), "text": "ä" * 300},
    [None, True, -1, 255, 1 << 40, 1 << 3000, 2.5, b"bytes" * 100, bytearray(b"x"), "kurz"],
    OrderedDict([((1, 2, 3), Fraction(1, 3)), ("nested", [{"a": (1,)}] * 40)]),
]


def by_genops(content: bytes) -> int:
    return max(position for _, _, position in pickletools.genops(content)) + 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=["tensors", "numbers", "nested"])
def test_the_end_is_where_python_finds_it(value, protocol):
    content = pickle.dumps(value, protocol)
    assert look_through(content + b"what follows") == by_genops(content) == len(content)
    assert look_through(b"before" + content, len(b"before")) == len(b"before") + len(content)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_ends_too_early(protocol):
    content = pickle.dumps(VALUES[1], protocol)
    for end in range(len(content)):
        with pytest.raises((EOFError, ValueError)):
            look_through(content[:end])


def test_damaged_ones_end_where_python_says_so_or_are_refused():
    """A reader that saw other instructions than Python's could be deceived."""
    dice = random.Random(0)
    whole = [pickle.dumps(value, protocol) for value in VALUES for protocol in range(6)]
    ended = 0
    for _ in range(3000):
        content = bytearray(dice.choice(whole))
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        try:
            end = by_genops(bytes(content))
        except (ValueError, UnicodeError, EOFError):
            continue
        try:
            assert look_through(bytes(content)) == end
            ended += 1
        except (Excessive, pickle.UnpicklingError):
            pass
    assert ended > 300


@pytest.mark.parametrize(
    ("content", "raised"),
    [
        (b"\x80\x04\x8f.", Excessive),  # EMPTY_SET
        (b"\x80\x04}" + b")" + b"\x85" * (MOST_TUPLES + 1) + b"Ns.", Excessive),
        (b"\x80\x02Nr\x00\x00\x00\x80.", pickle.UnpicklingError),  # a memo of 2^31 entries
        (b"Np1000000\n.", pickle.UnpicklingError),
        (b"\x80\x02\xff.", pickle.UnpicklingError),  # no instruction
        (b"\x80\x02T\xff\xff\xff\xff.", pickle.UnpicklingError),  # -1 bytes
        (b"", EOFError),
    ],
    ids=["set", "tuples", "memo", "memo-in-text", "unknown", "negative", "empty"],
)
def test_refused(content, raised):
    with pytest.raises(raised):
        look_through(content)
