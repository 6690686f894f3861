"""What Convoy asks of an agent: the training half of NAVSIM's `AbstractAgent`, as a Protocol.

NAVSIM's agents satisfy it as they are, and so does any class of the same shape: nothing needs to
be inherited from, so an agent can be trained without NAVSIM being installed.
"""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Builder(Protocol):
    """A feature or target builder. While training from a cache only its name is used."""

    def get_unique_name(self) -> str:
        """Stem of the builder's cache file: `<cache>/<log>/<token>/<name>.gz`."""
        ...


@runtime_checkable
class TrainableAgent(Protocol):
    """A `torch.nn.Module` with these methods.

    `features` and `targets` are what NAVSIM's collating makes of the builders' dicts: tensors with
    the batch in dimension 0, and dicts and lists of those. Their keys are those that the agent's
    own builders write. `predictions["trajectory"]` and `targets["trajectory"]`, where present, are
    (batch, poses, 3): x and y in metres and heading in radians, in the ego frame (x ahead, y left).
    """

    def get_feature_builders(self) -> list[Builder]: ...

    def get_target_builders(self) -> list[Builder]: ...

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Predictions. A parameter that is named `targets` is given the targets."""
        ...

    def compute_loss(
        self,
        features: dict[str, Any],
        targets: dict[str, Any],
        predictions: dict[str, Any],
    ) -> Any:
        """Scalar loss of the batch, averaged over the samples: a tensor, a dict with it under
        "loss", or a tuple that begins with it; other scalars with it are logged by their names.

        A parameter that is named `tokens` is given the samples' tokens, a list of strings.
        """
        ...

    def get_optimizers(self) -> Any:
        """An optimiser, or Lightning's dict of optimiser and learning-rate scheduler."""
        ...

    def get_training_callbacks(self) -> list[Any]:
        """Lightning callbacks of the agent's own."""
        ...
