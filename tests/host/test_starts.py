"""Expected starts from a picture of the queue."""

from datetime import datetime

import pytest

from convoy.host import starts
from convoy.host.cluster_model import Cluster, Job, Node, Partition

HOUR = 3600


def node(name: str, used: int = 4, **facts) -> Node:
    return Node(name, facts.pop("partitions", ("p",)), "l40s", 4, used, state="ALLOCATED", **facts)


def job(
    state: str, gpus: int, priority: int = 1, limit: int = HOUR, left: int | None = None
) -> Job:
    return Job(
        "1", "me", "users", ("p",), state, "", max(1, gpus // 4), gpus, limit, left, None, priority
    )


def cluster(nodes: list[Node], jobs: list[Job], wait: float | None = None) -> Cluster:
    partitions = {"p": Partition("p", wait=wait), "q": Partition("q")}
    return Cluster(datetime(2026, 1, 5), tuple(nodes), partitions, tuple(jobs))


def start(picture: Cluster, gpus: int, partition: str = "p") -> float | None:
    wait = starts.waits(picture, [(partition, "l40s", gpus)])[0]
    return None if wait is None else wait.expected


def test_free_nodes_start_now_and_busy_ones_when_their_jobs_end():
    picture = cluster([node("a", 0), node("b")], [job("RUNNING", 4, left=2 * HOUR)])
    assert start(picture, 4) == 0
    assert start(picture, 8) == 2 * HOUR
    assert start(picture, 12) is None


def test_a_backlog_goes_first_in_the_order_of_priority():
    running = [job("RUNNING", 4, left=HOUR), job("RUNNING", 4, left=2 * HOUR)]
    low, high = job("PENDING", 8, priority=1, limit=HOUR), job("PENDING", 4, 5, limit=4 * HOUR)
    picture = cluster([node("a"), node("b")], [*running, low, high])
    # The high one takes the first node from 1 h to 5 h, the low one both from 5 h to 6 h.
    assert start(picture, 4) == 6 * HOUR


def test_held_jobs_and_jobs_that_never_fit_stand_in_nobodys_way():
    picture = cluster([node("a", 0)], [job("PENDING", 4, priority=0), job("PENDING", 40, 9)])
    assert start(picture, 4) == 0


def test_drained_nodes_do_not_count():
    assert start(cluster([node("a", 0, usable=False)], []), 4) is None


def test_partitions_share_nodes():
    shared = node("a", 0, partitions=("p", "q"))
    picture = cluster([shared], [job("PENDING", 4)])
    assert start(picture, 4, "q") == HOUR


def test_a_wait_that_the_file_gives():
    wait = starts.waits(cluster([node("a")], [], wait=6.5 * HOUR), [("p", "l40s", 4)])[0]
    assert wait is not None and wait.expected == 6.5 * HOUR
    assert wait.low < wait.expected < wait.high and "file" in wait.source


@pytest.mark.parametrize("now", [0.0, 60.0])
def test_an_immediate_start_still_takes_a_moment(now: float):
    wait = starts.Wait.of(now, "")
    assert wait.low == 0 and wait.high == starts.STARTING
