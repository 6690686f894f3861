"""Findings about image, host and GPUs, which doctor and preflight share."""
