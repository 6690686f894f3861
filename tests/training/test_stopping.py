"""What ranks agree on after their steps."""

from types import SimpleNamespace

from convoy.topology import Topology
from convoy.training.process_group import HostGroup
from convoy.training.stopping import Agreement

TWO = HostGroup(Topology(world_size=2, local_world_size=2), None)  # of two ranks that wish the same
NO = SimpleNamespace(number=0)  # request


def test_a_checkpoint_that_is_due_is_saved_once_where_ranks_agree_after_every_step():
    agreement = Agreement(TWO, NO, seconds=0.0)
    is_due, saved = True, []
    for step in range(1, 9):
        decision = agreement.after_step(lambda: is_due, lambda: False)
        if decision is not None and decision.save:
            saved.append(step)
            is_due = False
        if step == 5:
            is_due = True
    assert saved == [2, 7]


def test_alone_it_is_saved_after_the_step_that_it_is_due_at():
    agreement = Agreement(HostGroup(Topology(), None), NO)
    decisions = [agreement.after_step(lambda: due, lambda: False) for due in (False, True, False)]
    assert [decision.save for decision in decisions] == [False, True, False]


def test_a_stop_is_heard_one_step_later():
    request = SimpleNamespace(number=0)
    agreement = Agreement(TWO, request, seconds=0.0)
    assert agreement.after_step(lambda: False, lambda: False) is None
    request.number = 15
    heard = [agreement.after_step(lambda: False, lambda: False).signal for _ in range(2)]
    assert heard == [0, 15]
