"""The launch, as far as it happens in the container: addresses, ports, torchrun on each node, failures."""
