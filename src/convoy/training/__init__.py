"""Training: the Lightning module and trainer, checkpoints, metrics and progress."""
