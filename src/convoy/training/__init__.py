"""Training: the Lightning module and trainer, checkpoints, metrics and progress."""

import convoy.navsim.torchvision_cpu  # noqa: F401  # Lightning imports torchvision wherever it is installed
