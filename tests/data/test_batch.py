from collections import namedtuple

import torch
from torch.utils.data import default_collate

from convoy.data.batch import first

Pair = namedtuple("Pair", "left right")


def sample(number):
    return {
        "image": torch.full((2, 3), float(number)),
        "history": [torch.tensor([number]), {"speed": number * 1.5}],
        "name": f"sample-{number}",
        "pair": Pair(number, (str(number), number)),
    }


def test_the_first_samples_are_what_collating_them_gives():
    batch = default_collate([sample(number) for number in range(5)])
    assert str(first(3, batch)) == str(default_collate([sample(number) for number in range(3)]))
