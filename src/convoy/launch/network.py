"""Which of this machine's addresses its peers reach, on which interface, and a free port. Standard
library only."""

import errno
import fcntl
import random
import socket
import struct
import zlib
from collections.abc import Container
from pathlib import Path

from convoy.errors import ConvoyError

# Above Linux's default range for outgoing connections (32768-60999), so that no client's socket
# takes a probed port.
PORTS = range(61000, 65536)
LOOPBACK = ("127.0.0.1", "::1")
_SIOCGIFADDR = 0x8915


def address_towards(peer: str) -> str:
    """This machine's own address on its route to `peer` (a name or an address): what `peer` can
    answer to.

    The kernel's routing decides, so neither aliases nor loopback entries for this machine's own
    name matter. A peer that is named by a loopback address is on this machine. Raises ConvoyError
    where `peer` has no address or cannot be reached.
    """
    if peer in LOOPBACK:
        return peer
    try:
        found = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise ConvoyError(
            f"The node {peer} has no address here ({error.strerror}): names of the allocation's "
            "nodes must be resolvable on each of them (/etc/hosts or DNS)."
        ) from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)  # of a datagram socket: nothing is sent
            except OSError:
                continue
            own = str(probe.getsockname()[0])
        if not own.startswith("127.") and own != "::1":
            return own
    raise ConvoyError(
        f"{socket.gethostname()} has no route to {peer} but loopback. Check /etc/hosts for {peer}."
    )


def interface_of(address: str) -> str | None:
    """Name of the interface that carries `address`, or None."""
    if ":" in address:
        wanted = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
        table = Path("/proc/net/if_inet6")
        entries = (
            (line.split() for line in table.read_text().splitlines())
            if table.exists()
            else iter(())
        )
        return next((entry[5] for entry in entries if entry[0] == wanted), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def endpoint(address: str, port: int) -> str:
    """`host:port`, the host in brackets where it is an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def free_port(wanted: int | None, seed: str, taken: Container[int] = ()) -> int:
    """`wanted`, or else a port of `PORTS` that is not among `taken`; either is bound here for a
    moment to see that nobody has it.

    `seed` (the job's id) decides where the search starts, so that jobs which start at the same
    moment on one node look at different ports. Raises ConvoyError where `wanted` is taken.
    """
    if wanted is not None:
        if not _can_bind(wanted):
            raise ConvoyError(
                f"Port {wanted} is taken on {socket.gethostname()}. Leave CONVOY_RDZV_PORT out: "
                "Convoy finds a free one."
            )
        return wanted
    for port in random.Random(seed).sample(PORTS, len(PORTS)):
        if port not in taken and _can_bind(port):
            return port
    raise ConvoyError(
        f"No port from {PORTS.start} to {PORTS.stop - 1} is free on {socket.gethostname()}."
    )


def host_and_port(endpoint: str) -> tuple[str, int]:
    """The inverse of `endpoint`."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def port_of(seed: str) -> int:
    """The same port of `PORTS` on every node that knows `seed`, unprobed."""
    return PORTS[zlib.crc32(seed.encode()) % len(PORTS)]


def _can_bind(port: int) -> bool:
    """Whether every address of this machine has `port` free, as the server that listens on all of
    them needs."""
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # As servers do: a connection of an earlier run that still lingers (TIME_WAIT) is no
                # obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                probe.listen()
        except OSError as error:
            if (
                error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                and family == socket.AF_INET6
            ):
                continue  # no IPv6 here
            return False
    return True
