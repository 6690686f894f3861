"""How a start ended: a table from records to outcomes."""

import pytest

from convoy.launch.outcome import Kind, outcome
from convoy.launch.verdict import Failure
from convoy.run.node_state import NodeState

HOSTS = ("gl001", "gl006", "gl011")
ENDED = {host: NodeState(host, 1.0, exit_code=1) for host in HOSTS}


def failure(message: str, exit_code: int = 1, host: str = "gl001", fixable: bool = False):
    return Failure(3, host, 5.0, exit_code, message, fixable)


def without(host: str) -> dict[str, NodeState]:
    """The node began and said nothing more."""
    return {**ENDED, host: NodeState(host, 1.0)}


RESET = failure("RuntimeError: Connection reset by peer")
SIGKILLED = failure("it was killed by SIGKILL", -9, "gl006")
UNFIT = {**ENDED, "gl006": NodeState("gl006", 1.0, exit_code=3, problem="GPU 2: no memory")}


@pytest.mark.parametrize(
    ("status", "failures", "states", "answering", "kind", "nodes", "said"),
    [
        (75, [], ENDED, None, Kind.STOPPED, (), "saved and stopped"),
        (75, [RESET], without("gl006"), ("gl001", "gl011"), Kind.LOST, ("gl006",), "gl006 went"),
        (1, [RESET], ENDED, HOSTS, Kind.KILLED, (), "Connection reset"),
        (1, [RESET], without("gl006"), HOSTS, Kind.KILLED, ("gl006",), "launcher on gl006"),
        (1, [SIGKILLED, RESET], ENDED, HOSTS, Kind.KILLED, (), "rank 3 on gl006: it was killed"),
        (1, [SIGKILLED], without("gl011"), (), Kind.KILLED, (), "rank 3 on gl006"),
        (75, [failure("No step for 30 minutes", 75)], ENDED, HOSTS, Kind.KILLED, (), "No step"),
        (1, [failure("RuntimeError: a bug"), RESET], ENDED, HOSTS, Kind.FAILED, (), "a bug"),
        (1, [failure("run_dir is taken", fixable=True)], ENDED, HOSTS, Kind.FAILED, (), "taken"),
        (3, [RESET], UNFIT, HOSTS, Kind.UNFIT, ("gl006",), "gl006: GPU 2: no memory"),
        (
            1,
            [failure("CUDA error: uncorrectable ECC error encountered", host="gl011")],
            ENDED,
            HOSTS,
            Kind.UNFIT,
            ("gl011",),
            "ECC",
        ),
        (9, [], {}, HOSTS, Kind.FAILED, (), "srun ended with 9"),
    ],
)
def test_what_ended_it(status, failures, states, answering, kind, nodes, said):
    ended = outcome(status, failures, HOSTS, states, answering)
    assert (ended.kind, ended.nodes) == (kind, nodes)
    assert said in ended.reason


def test_a_node_that_went_while_the_job_was_asked_to_stop():
    """Then SLURM is not asked, and the other nodes know."""
    ended = outcome(75, [RESET], HOSTS, without("gl006"), None, ("gl006",))
    assert (ended.kind, ended.nodes) == (Kind.LOST, ("gl006",))
    assert "shows no sign of life" in ended.reason


def test_a_rank_that_adds_up_wrongly_makes_its_node_unfit():
    wrong = failure("An all-reduce gave a wrong sum on rank 3", 3, "gl011", fixable=True)
    ended = outcome(3, [wrong], HOSTS, ENDED, HOSTS)
    assert (ended.kind, ended.nodes) == (Kind.UNFIT, ("gl011",))


def test_a_node_without_a_container_is_unfit():
    begun = {host: NodeState(host, 1.0) for host in ("gl001", "gl011")}
    ended = outcome(1, [], HOSTS, begun, HOSTS)
    assert (ended.kind, ended.nodes) == (Kind.UNFIT, ("gl006",))
    assert ended.reason == "unfit for the run: gl006 could not start the container"
    # Asked to stop so early that it had not begun, or where no node could.
    assert outcome(75, [], HOSTS, begun).kind is Kind.KILLED
    assert outcome(1, [], HOSTS, {}, HOSTS).kind is Kind.FAILED


def test_each_side_of_a_cut_saw_the_other_go():
    """The network is back: SLURM reaches both, and both have ended by themselves."""
    ended = outcome(75, [], HOSTS, ENDED, HOSTS, ("gl006", "gl001"))
    assert (ended.kind, ended.nodes) == (Kind.KILLED, ("gl006",))
    assert ended.reason == "gl006 could not be reached for a while"


def test_a_launcher_that_was_killed_is_no_lost_node():
    ended = outcome(75, [RESET], HOSTS, without("gl006"), HOSTS, ("gl006",))
    assert (ended.kind, ended.nodes) == (Kind.KILLED, ("gl006",))
    assert "the launcher on gl006" in ended.reason


def test_a_node_that_was_told_to_end_did_not_go_away():
    told = {**ENDED, "gl006": NodeState("gl006", 1.0, signal="SIGTERM")}
    assert outcome(75, [], HOSTS, told).kind is Kind.STOPPED
