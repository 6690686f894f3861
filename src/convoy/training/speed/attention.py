"""TransFuser's attention between picture and lidar through torch's fused one.

NAVSIM's `SelfAttention` writes all scores (B, heads, 320, 320) to memory, their softmax, and the
softmax after dropout. Wherever an agent has a module whose `forward` is these statements, as forks
that copied TransFuser's backbone do, `scaled_dot_product_attention` takes its place: the same
values within rounding, dropout with the same probability but other random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from convoy.training.speed.statements import fingerprint

# Of the statements of SelfAttention.forward in NAVSIM's transfuser_backbone (commit 0a380a9).
KNOWN = "70274581e6b2"


def find(agent: nn.Module) -> list[type[nn.Module]]:
    """Classes of `agent`'s modules whose attention can be replaced."""
    classes = dict.fromkeys(type(module) for module in agent.modules())
    return [entry for entry in classes if fingerprint([entry.forward]) == KNOWN]


@contextmanager
def replaced(classes: list[type[nn.Module]]) -> Iterator[None]:
    """While this is open, modules of these classes attend by the fused form."""
    before = [entry.forward for entry in classes]
    for entry in classes:
        entry.forward = attend
    try:
        yield
    finally:
        for entry, function in zip(classes, before, strict=True):
            entry.forward = function


def attend(self: Any, x: Tensor) -> Tensor:
    """`SelfAttention.forward` of tokens (B, T, C)."""
    batch, tokens, channels = x.shape

    def heads(layer: nn.Module) -> Tensor:
        of_tokens: Tensor = layer(x)
        return of_tokens.view(batch, tokens, self.n_head, -1).transpose(1, 2)

    dropout = self.attn_drop.p if self.attn_drop.training else 0.0
    attended = functional.scaled_dot_product_attention(
        heads(self.query), heads(self.key), heads(self.value), dropout_p=dropout
    )
    attended = attended.transpose(1, 2).reshape(batch, tokens, channels)
    joined: Tensor = self.resid_drop(self.proj(attended))
    return joined
