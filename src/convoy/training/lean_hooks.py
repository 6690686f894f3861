"""Lightning calls sixty empty hooks in each step: only those that do something are called here.

For an agent whose step takes a millisecond this is a part of it that can be measured; the others
lose nothing.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer import call

# Of the module, and empty in Lightning.
EMPTY = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


@contextmanager
def lean_hooks(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """While `trainer` fits `module`, whose `training_step` takes (batch, batch_idx)."""
    of_callbacks, of_module = call._call_callback_hooks, call._call_lightning_module_hook
    known: dict[str, list[pl.Callback]] = {}
    callbacks = trainer.callbacks
    empty = {name for name in EMPTY if _is(module, name, pl.LightningModule)}

    def call_callbacks(of: pl.Trainer, name: str, *args: Any, **named: Any) -> None:
        if of is not trainer or "monitoring_callbacks" in named:
            return of_callbacks(of, name, *args, **named)
        if name not in known:
            known[name] = [one for one in callbacks if not _is(one, name, pl.Callback)]
        state = vars(module)  # a module's own way of setting an attribute takes a while
        before, state["_current_fx_name"] = state["_current_fx_name"], name
        for one in known[name]:
            with trainer.profiler.profile(f"[Callback]{type(one).__qualname__}.{name}"):
                getattr(one, name)(trainer, module, *args, **named)
        state["_current_fx_name"] = before
        return None

    def call_module(of: pl.Trainer, name: str, *args: Any, **named: Any) -> Any:
        if of is trainer and name in empty and "pl_module" not in named:
            return None
        return of_module(of, name, *args, **named)

    loop = trainer.fit_loop.epoch_loop
    call._call_callback_hooks, call._call_lightning_module_hook = call_callbacks, call_module
    # Lightning inspects the signature of `training_step` in each step.
    loop._build_kwargs = _arguments
    try:
        yield
    finally:
        call._call_callback_hooks, call._call_lightning_module_hook = of_callbacks, of_module
        del loop._build_kwargs


def _is(owner: Any, name: str, base: type) -> bool:
    """Whether a hook is the base class's own; a function that was set on the instance is not."""
    return getattr(getattr(owner, name), "__func__", None) is getattr(base, name)


def _arguments(kwargs: "OrderedDict[str, Any]", batch: Any, batch_idx: int) -> Any:
    kwargs["batch"] = batch
    kwargs["batch_idx"] = batch_idx
    return kwargs
