"""What `convoy prepare` does: packed shards from a gzip cache or from raw logs, on many processes
of many nodes."""
