"""Agents: the contract and the built-in agent."""
