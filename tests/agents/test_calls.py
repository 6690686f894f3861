import pytest
import torch

from convoy.agents.calls import AgentCalls
from convoy.errors import ConvoyError
from tests.agents import habits

TOKENS = ["0", "1", "2", "3"]
FEATURES = {
    "ego_status": torch.ones(4, 8),
    "code": torch.arange(4),
    "history": [torch.ones(4, 2), {"name": TOKENS, "pose": torch.zeros(4, 3).double()}],
}
TARGETS = {"trajectory": torch.zeros(4, 8, 3), "trajectory_gt": torch.zeros(4, 8, 3)}


def step(agent):
    return AgentCalls(agent).step(FEATURES, TARGETS, lambda: TOKENS)


def test_a_tensor_a_dict_and_a_tuple_are_one_loss():
    plain = step(habits.Plain())
    assert plain.loss.requires_grad and plain.parts == {}
    parts = step(habits.LikeDiffusionDrive())
    assert parts.loss.requires_grad and parts.parts.keys() == {"half_loss", "weight"}
    torch.testing.assert_close(parts.parts["half_loss"], parts.loss.detach() / 2)
    assert not parts.parts["half_loss"].requires_grad and parts.parts["weight"] == 2.0
    tokens = step(habits.LikeGtrs())
    assert tokens.loss.ndim == 0 and tokens.parts.keys() == {"x_loss", "y_loss"}


def test_tokens_are_looked_up_only_for_those_who_ask():
    assert AgentCalls(habits.LikeGtrs()).wants_tokens
    calls = AgentCalls(habits.Plain())
    assert not calls.wants_tokens
    calls.step(FEATURES, TARGETS, lambda: pytest.fail("nobody asked for tokens"))


def test_a_loss_of_one_element_is_a_scalar():
    class Row(habits.Plain):
        def compute_loss(self, features, targets, predictions):
            return super().compute_loss(features, targets, predictions).reshape(1)

    assert step(Row()).loss.shape == ()


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ({"ori": torch.tensor(1.0)}, "a dict of 'ori'"),
        ({"loss": 1.0}, "a dict of 'loss'"),
        ((torch.zeros(2), {}), r"a tuple that begins with a tensor of shape \(2,\)"),
        (torch.zeros(4), r"a tensor of shape \(4,\)"),
        (None, "NoneType"),
        ((), "tuple"),
    ],
)
def test_anything_else_is_one_sentence(returned, named):
    class Odd(habits.Plain):
        def compute_loss(self, features, targets, predictions):
            return returned

    with pytest.raises(ConvoyError, match=rf"Odd.compute_loss returned {named}; expected is a"):
        step(Odd())


def test_an_agent_for_a_module_of_its_own_is_refused():
    with pytest.raises(ConvoyError, match=r"LikeGtrsAug.forward asks for \(batch\)"):
        AgentCalls(habits.LikeGtrsAug())

    class More(habits.Plain):
        def compute_loss(self, features, targets, predictions, teacher):
            raise AssertionError

    with pytest.raises(ConvoyError, match="asks for .*teacher.* own can call is not supported"):
        AgentCalls(More())


def test_any_names_and_star_arguments_will_do():
    class Star(habits.Plain):
        def forward(self, x, *others, scale=1.0, **more):
            return super().forward(x)

        def compute_loss(self, *arguments):
            return super().compute_loss(*arguments)

    assert step(Star()).loss > 0
