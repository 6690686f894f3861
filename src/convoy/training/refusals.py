"""Errors of Lightning and of DistributedDataParallel that a setting answers, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from convoy.errors import ConvoyError

# What DistributedDataParallel's message holds, what it means, and the setting that answers it.
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
                    f"DistributedDataParallel cannot train this agent as it is: {meaning}. "
                    f"Add {setting}."
                ) from error
        raise
