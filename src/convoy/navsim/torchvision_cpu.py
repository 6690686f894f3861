"""Makes torchvision importable beside a CPU build of torch: import this before Lightning or NAVSIM.

`python -m convoy.navsim.torchvision_cpu SCRIPT ARGUMENT…` does so for a script as it is.

The package index's torchvision has binary operators that need CUDA libraries. Beside a CPU torch
they are not registered, and importing it (as Lightning's metrics do wherever it is installed) ends
in "operator torchvision::nms does not exist". Their schemas are all that the import asks for;
Lightning and NAVSIM's agents never call them. Builds of torchvision that match their torch register
them themselves, and a second declaration would abort.
"""

import runpy
import sys
from importlib.metadata import PackageNotFoundError, version

import torch


def _lacks_operators() -> bool:
    try:
        return torch.version.cuda is None and not version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return False


if _lacks_operators() and "torchvision" not in sys.modules:
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
