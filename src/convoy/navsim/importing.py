"""Makes NAVSIM's packages importable in this process."""

import sys

from convoy.navsim import tree


def make_importable() -> None:
    """Put NAVSIM's tree on the import path, and make torchvision importable."""
    root = tree.find()
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    import convoy.navsim.torchvision_cpu  # noqa: F401


def import_agents() -> None:
    """Import what every NAVSIM agent imports.

    Raises ImportError where a package of NAVSIM's is missing.
    """
    make_importable()
    import navsim.agents.abstract_agent  # noqa: F401


def one_thread() -> None:
    """Keep the libraries that NAVSIM's builders call from starting threads; there is a process for
    each core."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
