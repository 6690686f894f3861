"""Data: NAVSIM's feature cache, packed shards, the order of samples, the data module."""
