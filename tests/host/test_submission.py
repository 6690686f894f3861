"""What a submission can say before it queues."""

from pathlib import Path

import pytest

from convoy.host.site import Site
from convoy.host.submission import Submission, too_uneven

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("overrides", "least", "uneven"),
    [
        (["global_batch=176"], 1, [3]),  # of 4 x 4 ranks: 12 do not divide it
        (["global_batch=176"], 4, []),
        (["global_batch=48"], 1, []),
        (["+global_batch=16", "agent=a"], 2, [3]),
        (["agent=a"], 1, []),
        (["global_batch=abc"], 1, []),
    ],
)
def test_on_how_many_nodes_the_global_batch_cannot_be_split(overrides, least, uneven):
    submission = Submission(Site(ROOT, {}), 4, {"nodes": "4"}, overrides)
    assert too_uneven(submission, least) == uneven
