"""Agents: the contract, NAVSIM's adapter (the only module that imports navsim) and the built-in
agent."""
