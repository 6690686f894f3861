"""Who requeues, and when nobody does: tables of decisions."""

import pytest

from convoy.launch.next_start import STALLED_STARTS, Action, Job, Smaller, decide, still_excluded
from convoy.launch.outcome import Kind, Outcome

SHOWN = """JobId=42 JobName=convoy
   Priority=1 Nice=0 Account=users QOS=normal
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   ReqNodeList=(null) ExcNodeList=gl[001,006]
"""
RUNNING = Job("RUNNING", True)
STOPPED = Outcome(Kind.STOPPED, "")
KILLED = Outcome(Kind.KILLED, "rank 1: SIGKILL")
LOST = Outcome(Kind.LOST, "gl006 went away", ("gl006",))
UNFIT = Outcome(Kind.UNFIT, "gl006: no memory", ("gl006",))
FAILED = Outcome(Kind.FAILED, "a bug")


def test_what_scontrol_says():
    job = Job.from_text(SHOWN)
    assert job == Job("RUNNING", True, ("gl001", "gl006"))
    assert Job.from_text(SHOWN.replace("Requeue=1", "Requeue=0")).may_requeue is False
    assert Job.from_text(SHOWN.replace("BatchFlag=1", "BatchFlag=0")).may_requeue is False
    assert Job.from_text("") == Job("UNKNOWN", False)
    preempted = "   PreemptEligibleTime=2026-11-25T17:26:18 PreemptTime={}\n"
    assert not Job.from_text(SHOWN + preempted.format("None")).preempted
    assert Job.from_text(SHOWN + preempted.format("2026-11-25T17:26:18")).preempted


@pytest.mark.parametrize(
    ("ended", "job", "asked", "action", "code", "excluded"),
    [
        (STOPPED, RUNNING, True, Action.REQUEUE, 75, ()),
        (STOPPED, RUNNING, False, Action.REQUEUE, 75, ()),
        (KILLED, RUNNING, False, Action.AGAIN, 75, ()),
        # The time limit is near, or the job is preempted: no time for another start here.
        (KILLED, RUNNING, True, Action.REQUEUE, 75, ()),
        (LOST, RUNNING, False, Action.REQUEUE, 75, ("gl006",)),
        (UNFIT, RUNNING, False, Action.REQUEUE, 3, ("gl006",)),
        (FAILED, RUNNING, False, Action.END, 1, ()),
        (FAILED, RUNNING, True, Action.END, 1, ()),
        # scancel, the time limit, preemption with PreemptMode=REQUEUE, a node that SLURM gave up:
        # SLURM has decided already, and a second requeue would revive what a person cancelled.
        (STOPPED, Job("COMPLETING", True), True, Action.END, 75, ()),
        (STOPPED, Job("CANCELLED", True), True, Action.END, 75, ()),
        (KILLED, Job("COMPLETING", True), False, Action.END, 75, ()),
        (LOST, Job("COMPLETING", True), False, Action.END, 75, ()),
        # Preempted with a grace time: the ranks would not get far in it.
        (KILLED, Job("RUNNING", True, preempted=True), False, Action.REQUEUE, 75, ()),
        (STOPPED, Job("RUNNING", True, preempted=True), False, Action.REQUEUE, 75, ()),
        # salloc, --no-requeue
        (STOPPED, Job("RUNNING", False), True, Action.END, 75, ()),
        (KILLED, Job("RUNNING", False), False, Action.AGAIN, 75, ()),
        (UNFIT, Job("RUNNING", False), False, Action.END, 3, ()),
        # The user's own --exclude stays.
        (LOST, Job("RUNNING", True, ("gl099",)), False, Action.REQUEUE, 75, ("gl099", "gl006")),
        (STOPPED, Job("UNKNOWN", False), True, Action.END, 75, ()),
    ],
)
def test_what_follows(ended, job, asked, action, code, excluded):
    decision = decide(ended, 1, job, asked, step=10, events=[])
    assert (decision.action, decision.exit_code) == (action, code)
    assert decision.excluded == excluded
    assert set(decision.fresh) <= set(ended.nodes)


def test_a_failure_never_ends_as_if_it_had_stopped():
    """Another node's part of it ended with 75, and srun's status is the highest."""
    assert decide(FAILED, 75, RUNNING, False, step=10, events=[]).exit_code == 1
    assert decide(FAILED, 137, RUNNING, False, step=10, events=[]).exit_code == 137


def test_a_preempted_job_says_so():
    decision = decide(STOPPED, 75, Job("RUNNING", True, preempted=True), False, 10, [])
    assert decision.reason == "SLURM is preempting the job: requeueing it"


def before(*steps: int, kind: str = "restart") -> list[dict[str, object]]:
    return [{"kind": kind, "step": step, "start": f"7-{n}"} for n, step in enumerate(steps)]


@pytest.mark.parametrize("ended", [STOPPED, KILLED, LOST, UNFIT])
def test_no_progress_over_several_starts_ends(ended):
    at_once = decide(ended, 1, RUNNING, False, 10, before(4, *[10] * (STALLED_STARTS - 2)))
    assert at_once.action is not Action.END
    stalled = decide(ended, 1, RUNNING, False, 10, before(4, *[10] * (STALLED_STARTS - 1)))
    assert (stalled.action, stalled.exit_code) == (Action.END, 1)
    assert f"{STALLED_STARTS} starts in a row ended at step 10" in stalled.reason


def test_progress_starts_the_count_anew():
    history = before(10, 10, 12, 14, 15, kind="requeue")
    assert decide(STOPPED, 75, RUNNING, True, 16, history).action is Action.REQUEUE


@pytest.mark.parametrize(
    ("ended", "asked", "smaller", "action", "said"),
    [
        (LOST, False, Smaller(1), Action.SHRINK, "continuing on 1 node without gl006"),
        (LOST, False, Smaller(3), Action.SHRINK, "continuing on 3 nodes without gl006"),
        (LOST, False, None, Action.REQUEUE, "requeueing the job, without gl006"),
        (LOST, False, Smaller(1, "too few"), Action.REQUEUE, "without gl006 (too few)"),
        # The time limit is near.
        (LOST, True, Smaller(1), Action.REQUEUE, "requeueing the job, without gl006"),
        (UNFIT, False, Smaller(1), Action.SHRINK, "continuing on 1 node without gl006"),
        (UNFIT, True, Smaller(1), Action.REQUEUE, "requeueing the job, without gl006"),
        (KILLED, False, Smaller(1), Action.AGAIN, "again"),
    ],
)
def test_what_follows_where_a_job_may_continue_on_fewer_nodes(ended, asked, smaller, action, said):
    decision = decide(ended, 1, RUNNING, asked, 10, [], smaller=smaller)
    assert decision.action is action and said in decision.reason
    assert decision.excluded == decision.fresh == (() if ended is KILLED else ("gl006",))


def test_a_job_that_continued_without_a_node_is_requeued_without_it():
    events = [
        {"kind": "excluded_node", "node": "gl006", "until": 300.0},
        {"kind": "shrink", "step": 4, "start": "7-0"},
    ]
    decision = decide(STOPPED, 75, RUNNING, True, 10, events, now=200.0)
    assert (decision.action, decision.excluded) == (Action.REQUEUE, ("gl006",))


def test_an_exclusion_runs_out():
    events = [
        {"kind": "excluded_node", "node": "gl001", "until": 100.0},
        {"kind": "excluded_node", "node": "gl006", "until": 300.0},
    ]
    job = Job("RUNNING", True, ("gl001", "gl006", "gl099"))
    assert still_excluded(events, job, now=200.0) == ("gl006", "gl099")
    decision = decide(STOPPED, 75, job, True, 10, events, now=400.0)
    assert decision.excluded == ("gl099",)
