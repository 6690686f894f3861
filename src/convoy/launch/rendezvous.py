"""How torchrun's agents meet: at torch's TCPStore, with nothing but counters in it.

torch's own c10d rendezvous keeps its state in that store as a pickle which every agent loads, so
that whoever reaches the port can run code on all nodes. It needs that state because nodes may come
and go. Those of a start are known and numbered beforehand.
"""

import time
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

BACKEND = "convoy"  # the name for torchrun
ARRIVAL = timedelta(minutes=10)  # in which all nodes have to come
_TRY = timedelta(seconds=5)  # of one attempt to connect; a signal waits as long
_OWN = timedelta(minutes=1)  # of the first node's with its own store: a node may be very busy
_PAUSE = 0.1  # seconds between two looks
GRACE = 10.0  # seconds that ranks have to end by themselves once the first node's agent has gone


class Rendezvous(RendezvousHandler):
    """Of `nodes` nodes, this one has `number`; the store is on number 0."""

    def __init__(
        self, endpoint: str, number: int, nodes: int, start: str, arrival: timedelta = ARRIVAL
    ) -> None:
        """`endpoint` is host:port; the port may be 0 where the node is alone."""
        self._host, self._port = parse_rendezvous_endpoint(endpoint, 0)
        self._number, self._nodes, self._start = number, nodes, start
        self._arrival = arrival.total_seconds()
        self._store: TCPStore | None = None
        self._gone_since: float | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Raises RendezvousError where the nodes do not all come."""
        deadline = time.monotonic() + self._arrival
        self._store = self._connect(deadline)
        store = PrefixStore(self._start, self._store)
        self._wait_for_all(store, deadline)
        address = RendezvousStoreInfo(self._host, self._store.port)
        return RendezvousInfo(store, self._number, self._nodes, address)

    def num_nodes_waiting(self) -> int:
        """None ever does. The agent asks all the time, and so notices that the store is gone. That
        is no failure where ranks were asked to stop: the first node's have ended a moment before.
        """
        assert self._store is not None
        try:
            self._store.check([self._start])
        except DistError as error:
            self._gone_since = self._gone_since or time.monotonic()
            if time.monotonic() - self._gone_since >= GRACE:
                raise RendezvousConnectionError(f"the first node is gone ({error})") from error
        return 0

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._start

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def shutdown(self) -> bool:
        return True

    def _connect(self, deadline: float) -> TCPStore:
        serves = self._number == 0
        while True:
            try:
                store = TCPStore(
                    self._host,
                    self._port,
                    is_master=serves,
                    timeout=_OWN if serves else _TRY,
                    wait_for_workers=False,
                    multi_tenant=True,  # the ranks use it too
                )
                store.set_timeout(ARRIVAL)
                return store
            except DistError as error:
                if serves or time.monotonic() > deadline:
                    raise RendezvousConnectionError(str(error)) from error
                time.sleep(_PAUSE)

    def _wait_for_all(self, store: Store, deadline: float) -> None:
        """In Python, so that signals are heard meanwhile."""
        names = [f"node-{number}" for number in range(self._nodes)]
        if store.add(names[self._number], 1) > 1:
            raise RendezvousError(f"two nodes have the number {self._number}")
        while not store.check(names):
            if time.monotonic() > deadline:
                missing = [name for name in names if not store.check([name])]
                raise RendezvousTimeoutError(
                    f"{', '.join(missing)} did not come within {self._arrival:.0f} s"
                )
            time.sleep(_PAUSE)


def register() -> None:
    """Make it known to torchrun."""
    rendezvous_handler_registry.register(BACKEND, _create)


def _create(parameters: RendezvousParameters) -> Rendezvous:
    number = parameters.get_as_int("number")
    assert number is not None
    return Rendezvous(parameters.endpoint, number, parameters.max_nodes, parameters.run_id)
