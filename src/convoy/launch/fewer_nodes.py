"""Whether a run can continue without a lost or unfit node, with the same global batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from convoy import config
from convoy.errors import ConvoyError
from convoy.launch.next_start import Smaller
from convoy.navsim import tree
from convoy.run.layout import RunDirectory
from convoy.topology import Topology


def without(
    run: RunDirectory, started: Mapping[str, Any], lost: Sequence[str], least: int
) -> tuple[int | None, Smaller]:
    """The global batch that has to be named for that (None: the arguments name it), and whether a
    start on the other nodes can be. `started` is the record of the start that `lost` them; `least`
    nodes have to stay.
    """
    hosts, overrides = started["nodes"], list(started["overrides"])
    left = len([host for host in hosts if host not in lost])
    if hosts[0] in lost:
        return None, Smaller(left, "the rendezvous was on it")
    if left < least:
        return None, Smaller(left, f"{left} of the {least} that CONVOY_MIN_NODES asks for are left")
    batch = _global_batch(run)
    named = any(word.lstrip("+").startswith("global_batch=") for word in overrides)
    keep = batch if batch is not None and not named else None
    if keep is not None:
        overrides.append(f"global_batch={keep}")
    planned = Topology.planned(left, started["processes_per_node"])
    try:
        config.load(overrides, planned, tree.config_directory())
    except ConvoyError as error:
        return None, Smaller(left, f"not on the {left} that are left: {error}")
    return keep, Smaller(left)


def _global_batch(run: RunDirectory) -> int | None:
    """That of the run so far; None where it has none yet, so that nothing has to be kept."""
    try:
        batch = OmegaConf.select(OmegaConf.load(run.config), "global_batch")
    except (OSError, ValueError):
        return None
    return batch if isinstance(batch, int) else None
