"""The launch in the container, per node: the node, the network, the rank, the verdict."""
