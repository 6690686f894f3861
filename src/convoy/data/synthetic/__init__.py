"""Learnable driving data in NAVSIM's cache format, for tests, demos and benchmarks."""

from convoy.data.synthetic.write import CacheSummary, log_names, write_cache

__all__ = ["CacheSummary", "log_names", "write_cache"]
