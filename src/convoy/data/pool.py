"""Tasks over processes: spawned, quiet on Ctrl-C, gone with their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

from convoy.errors import ConvoyError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Task = TypeVar("Task")
Result = TypeVar("Result")


def check_workers(workers: int | None) -> None:
    """Raise `ConvoyError` for a number of processes below 1."""
    if workers is not None and workers < 1:
        raise ConvoyError(f"workers must be at least 1, got {workers}.")


def available() -> int:
    """How many processes this one may keep at work."""
    return len(os.sched_getaffinity(0))


def run(
    function: Callable[[Any, Task], Result],
    plan: Any,
    tasks: Iterable[Task],
    workers: int | None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, function(plan, task)) as they are done, by `workers` processes (default: one per
    available CPU).

    One worker works in this process. `prepare` is called first in each other process.
    """
    tasks = list(tasks)
    workers = min(workers or available(), len(tasks))
    if workers <= 1:
        yield from ((task, function(plan, task)) for task in tasks)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(prepare,)
    ) as pool:
        with _one_thread_each():  # submitting is what starts them
            futures = {pool.submit(function, plan, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ConvoyError(
                "A worker process was killed, most likely because memory ran out. "
                "Run the same command again with fewer workers; finished samples are kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start now have one thread in their numerical libraries, which read this when
    they are loaded: there is a process for each core."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(prepare: Callable[[], None] | None) -> None:
    # Ctrl-C reaches the whole process group; the parent answers it and lets the workers finish
    # their task.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if prepare:
        prepare()


def _exit_with_parent() -> None:
    """A killed parent would otherwise leave its workers waiting forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
