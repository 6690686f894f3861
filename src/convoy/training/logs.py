"""Logs: every rank writes its own file below the run directory.

Rank 0 also speaks to the console.
"""

import logging
import sys
import warnings

from convoy.run.layout import RunDirectory
from convoy.topology import Topology

logger = logging.getLogger("convoy")

# Lightning's advice on choices that Convoy makes on purpose.
EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    # The values are means over the ranks already.
    ".*It is recommended to use `self.log.*sync_dist=True.*",
    ".*your dataloader is not resumable.*",  # the data module keeps the order's position
    ".*is smaller than the logging interval.*",  # a report is made at the end of each epoch too
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


def speak_on_rank_zero(topology: Topology) -> None:
    """Convoy's own messages reach rank 0's console; Lightning's go to the log files only."""
    logging.captureWarnings(True)
    for expected in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=expected)
    logging.getLogger("py.warnings").propagate = True
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.getLogger().setLevel(logging.INFO)
    if topology.is_rank_zero:
        console = logging.StreamHandler(sys.stdout)
        console.addFilter(lambda record: record.name.startswith("convoy"))
        console.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger().addHandler(console)


def write_to(run: RunDirectory, topology: Topology) -> None:
    """Append everything that this rank logs to `logs/rank-<rank>.log`."""
    handler = logging.FileHandler(run.rank_log(topology.rank))
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s {topology.host} [{topology.rank}] %(name)s: %(message)s")
    )
    logging.getLogger().addHandler(handler)
    logger.info(str(topology)) if not topology.is_rank_zero else None
