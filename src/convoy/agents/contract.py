"""What Convoy asks of an agent: the training half of NAVSIM's `AbstractAgent`, as a Protocol.

NAVSIM's agents satisfy it as they are, and so does any class of the same shape: nothing needs to
be inherited from, so an agent can be trained without NAVSIM being installed.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Builder(Protocol):
    """A feature or target builder. While training from a cache only its name is used."""

    def get_unique_name(self) -> str:
        """Stem of the builder's cache file: `<cache>/<log>/<token>/<name>.gz`."""
        ...


@runtime_checkable
class TrainableAgent(Protocol):
    """A `torch.nn.Module` with these methods.

    `features`, `targets` and `predictions` are dicts of tensors with the batch in dimension 0;
    their keys are those that the agent's own builders write. `predictions["trajectory"]` and
    `targets["trajectory"]`, where present, are (batch, poses, 3): x and y in metres and heading in
    radians, in the ego frame (x ahead, y left).
    """

    def get_feature_builders(self) -> list[Builder]: ...

    def get_target_builders(self) -> list[Builder]: ...

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def compute_loss(
        self,
        features: dict[str, Tensor],
        targets: dict[str, Tensor],
        predictions: dict[str, Tensor],
    ) -> Tensor:
        """Scalar loss of the batch, averaged over the samples."""
        ...

    def get_optimizers(self) -> Any:
        """An optimiser, or a dict of optimiser and learning-rate scheduler as Lightning takes
        it."""
        ...

    def get_training_callbacks(self) -> list[Any]:
        """Lightning callbacks of the agent's own."""
        ...
