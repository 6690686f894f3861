import time

import pytest
import torch

from convoy.training.speed.exchange_times import EVERY, ExchangeTimes


def step(times: ExchangeTimes, beside: float = 0.0, after: float = 0.0) -> None:
    times.began()
    time.sleep(beside)
    times.backward_ended()
    time.sleep(after)
    times.ended()


def test_the_exchange_and_its_part_beside_the_backward_pass():
    times = ExchangeTimes(on_gpu=False)
    step(times)
    assert times.seconds() is None
    step(times, beside=0.03, after=0.01)
    exchange, hidden = times.seconds()
    assert 0.03 <= hidden <= exchange - 0.01


def test_one_step_in_a_hundred_is_timed():
    times = ExchangeTimes(on_gpu=False)
    step(times)
    step(times, beside=0.02)
    first = times.seconds()
    for _ in range(EVERY - 1):
        step(times)
    assert times.seconds() == first
    step(times)
    assert times.seconds() != first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; run it where torch sees one")
def test_on_a_gpu_nothing_waits():
    times = ExchangeTimes(on_gpu=True)
    step(times)
    times.began()
    torch.cuda._sleep(100_000_000)
    times.backward_ended()
    times.ended()
    assert times.seconds() is None
    torch.cuda.synchronize()
    exchange, hidden = times.seconds()
    assert 0 < hidden <= exchange
