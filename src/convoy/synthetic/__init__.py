"""Learnable driving data for tests, demos and benchmarks: NAVSIM's feature cache, or the raw logs
it is made from."""

from convoy.synthetic.raw import RawSummary, write_raw
from convoy.synthetic.write import CacheSummary, log_names, write_cache

__all__ = ["CacheSummary", "RawSummary", "log_names", "write_cache", "write_raw"]
