"""Which network interface NCCL and gloo use, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

# NCCL's and gloo's own names. Where a person or a site set one, it stays.
VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


@dataclass(frozen=True)
class Choice:
    """`variables` are to be added to the environment; `reason` says why, for the log."""

    variables: dict[str, str]
    reason: str


def choose_interface(
    environment: Mapping[str, str], peer: str, address: str, interface: str | None
) -> Choice:
    """`address` is this node's own on the route to `peer`; `interface` carries it, if one does."""
    named = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if interface is None:
        return Choice({}, f"no interface carries {address}: NCCL and gloo choose one themselves")
    chosen = {name: interface for name in VARIABLES if name not in named}
    route = f"{address} on {interface} is the route to {peer}"
    if not chosen:
        said = ", ".join(f"{name}={value}" for name, value in named.items())
        return Choice({}, f"{said} as set; {route}")
    return Choice(
        chosen, f"interface {interface}: {route} ({' and '.join(VARIABLES)} name another)"
    )
