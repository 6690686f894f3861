"""Where compiled kernels are kept: one folder for the runs of all experiments, on every node."""

import logging
import os
from pathlib import Path

from omegaconf import DictConfig

from convoy.run.ownership import experiments

logger = logging.getLogger("convoy")


def kernel_cache(config: DictConfig) -> Path:
    """`compile_cache`, or a folder beside the experiments."""
    if config.compile_cache:
        return Path(config.compile_cache).absolute()
    beside = Path(config.run_dir).absolute().parent.parent if config.run_dir else experiments()
    return beside / "compile-cache"


def keep_what_the_driver_compiles(config: DictConfig) -> None:
    """Call it before CUDA starts, which reads the variable once.

    cuDNN writes kernels for the shapes that it meets, and the driver compiles them: 15 s of
    TransFuser's first step on an H100. By itself the driver keeps them in the home directory, which
    a container does not have, and the image lets it use a folder of this node's.
    """
    if config.trainer.params.accelerator == "cpu":
        return
    kept = kernel_cache(config) / "cuda"
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): each start compiles cuDNN's kernels anew. Give another: "
            "compile_cache=/path.",
            kept,
            error.strerror,
        )
        return
    os.environ["CUDA_CACHE_PATH"] = str(kept)
