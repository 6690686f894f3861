"""Data: NAVSIM's feature cache, its synthetic stand-in, the order of samples, the Lightning data
module."""
