"""The host's side: what a person runs on a login node. Standard library only."""
