"""Convoy trains NAVSIM driving agents on many SLURM nodes from one Apptainer image."""

__version__ = "0.1.0"
