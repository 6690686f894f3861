import pytest

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from convoy.errors import ConvoyError
from convoy.training.refusals import explained


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("Expected to mark … Parameter at index 3 has been marked as ready twice."),
            r"strategy=\{static_graph: true\}",
        ),
        (
            RuntimeError("Expected to have finished reduction in the prior iteration before …"),
            "strategy=ddp_find_unused_parameters_true",
        ),
        (RuntimeError("3 parameters got no gradient in this step"), "find_unused_parameters_true"),
        (
            RuntimeError("2 parameters got a gradient on rank 0 and none here"),
            "not every step gives gradients to the same parameters",
        ),
        (
            MisconfigurationException("ModelCheckpoint(monitor='x')\n could not find the key"),
            r"refuses this configuration: ModelCheckpoint\(monitor='x'\) could not find the key",
        ),
    ],
)
def test_what_a_setting_answers_is_one_sentence(error, message):
    with pytest.raises(ConvoyError, match=message), explained():
        raise error


def test_an_agents_own_error_stays_as_it_is():
    with pytest.raises(RuntimeError, match="a wheel came off"), explained():
        raise RuntimeError("a wheel came off")
