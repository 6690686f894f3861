"""DDP for steps that average their gradients themselves: the same start, and no wrapper."""

import itertools

import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy


class WholeStepStrategy(DDPStrategy):
    """Every rank starts from rank 0's weights; `GradientMean` does the rest."""

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        module = self.lightning_module
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            dist.broadcast(tensor.detach(), src=0)
