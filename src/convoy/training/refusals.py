"""Errors of Lightning and of the mean of the gradients, DistributedDataParallel's or Convoy's, that
a setting answers, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from convoy.errors import ConvoyError

# What the message holds, what it means, and the setting that answers it.
_ANSWERS = (
    (
        "marked as ready twice",
        "a parameter takes part in a step more than once (two passes through a module that is "
        "checkpointed, say)",
        "'trainer.params.strategy={static_graph: true}'",
    ),
    (
        "Expected to have finished reduction in the prior iteration",
        "some parameters take no part in the loss",
        "trainer.params.strategy=ddp_find_unused_parameters_true",
    ),
    *(
        (
            words,
            "not every step gives gradients to the same parameters",
            "trainer.params.strategy=ddp_find_unused_parameters_true",
        )
        for words in (
            "parameters got no gradient in this step",
            "parameters got a gradient on rank 0 and none here",
            "a gradient that it did not get in the first step",
        )
    ),
)


@contextmanager
def explained() -> Iterator[None]:
    """Raise ConvoyError for what the user can fix; leave every other error as it is."""
    try:
        yield
    except MisconfigurationException as error:
        said = " ".join(str(error).split())
        raise ConvoyError(f"Lightning refuses this configuration: {said}") from error
    except RuntimeError as error:
        for words, meaning, setting in _ANSWERS:
            if words in str(error):
                raise ConvoyError(
                    f"Several ranks cannot train this agent as it is: {meaning}. Add {setting}."
                ) from error
        raise
