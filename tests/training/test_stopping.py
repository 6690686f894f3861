"""What ranks agree on after their steps."""

from types import SimpleNamespace

from convoy.topology import Topology
from convoy.training.process_group import HostGroup
from convoy.training.stopping import Agreement

TWO = HostGroup(Topology(world_size=2, local_world_size=2), None)  # of two ranks that wish the same
NO = SimpleNamespace(number=0)  # request


def test_a_checkpoint_that_is_due_is_saved_once_where_ranks_agree_after_every_step():
    agreement = Agreement(TWO, NO, seconds=0.0)
    due, saved = [True], []
    for step in range(1, 9):
        decision = agreement.after_step(lambda: bool(due), lambda: False)
        if decision is not None and decision.save:
            saved.append(step)
            due.clear()
        if step == 5:
            due.append(True)
    assert saved == [2, 7]


def test_alone_it_is_saved_after_the_step_that_it_is_due_at():
    agreement = Agreement(HostGroup(Topology(), None), NO)
    due: list[bool] = []
    before = agreement.after_step(lambda: bool(due), lambda: False)
    due.append(True)
    after = agreement.after_step(lambda: bool(due), lambda: False)
    assert (before.save, after.save) == (False, True)


def test_a_stop_is_heard_one_step_later():
    request = SimpleNamespace(number=0)
    agreement = Agreement(TWO, request, seconds=0.0)
    assert agreement.after_step(lambda: False, lambda: False) is None
    request.number = 15
    heard = [agreement.after_step(lambda: False, lambda: False).signal for _ in range(2)]
    assert heard == [0, 15]
