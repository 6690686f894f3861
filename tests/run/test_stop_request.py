import multiprocessing
import os
import signal
import time

import pytest

from convoy.run.stop_request import SIGNALS, StopRequest


@pytest.fixture
def request_():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopRequest().install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_does_nothing_else(request_, number):
    assert request_.number == 0
    os.kill(os.getpid(), number)
    assert request_.number == number
    os.kill(os.getpid(), signal.SIGTERM)
    assert request_.number == number


def test_a_forked_worker_dies_of_it(request_):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    for _ in range(20):  # Python drops a signal that comes while it forks
        worker.terminate()
        worker.join(1)
        if worker.exitcode is not None:
            break
    assert worker.exitcode == -signal.SIGTERM
    assert request_.number == 0
