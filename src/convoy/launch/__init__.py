"""The launch, as far as it happens in the container: addresses and ports, torchrun on each node, the report of a failure."""
