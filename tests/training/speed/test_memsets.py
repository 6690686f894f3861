"""A graph's memsets as kernels: on a GPU alone, where there are graphs."""

import pytest
import torch


@pytest.fixture
def captured(cuda):
    """A graph of `work`, its memsets replaced, and how many they were."""
    from convoy.training.speed import memsets

    def capture(work):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=stream):
            work()
        count = memsets.replaced(graph, stream)
        graph.instantiate()
        return graph, count

    return capture


@pytest.mark.parametrize(("size", "value"), [(1, 0), (1, 200), (2, 40000), (4, 0), (4, 2**32 - 2)])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_each_kind_of_memset_fills_what_it_filled(cuda, captured, size, value, offset):
    from cuda.bindings import driver

    fill = {1: driver.cuMemsetD8Async, 2: driver.cuMemsetD16Async, 4: driver.cuMemsetD32Async}
    area = torch.zeros(1000 * size, dtype=torch.uint8, device=cuda)

    def work():
        stream = torch.cuda.current_stream().cuda_stream
        (status,) = fill[size](area.data_ptr() + offset * size, value, 990, stream)
        assert status == driver.CUresult.CUDA_SUCCESS

    graph, count = captured(work)
    assert count == 1
    area.fill_(7)
    graph.replay()
    written = value.to_bytes(size, "little") * 990
    expected = bytes([7]) * offset * size + written + bytes([7]) * (10 - offset) * size
    assert bytes(area.cpu().numpy()) == expected


def test_work_that_needs_its_memsets_is_right_at_every_replay(cuda, captured):
    values = torch.randn(1 << 22, device=cuda)
    out = torch.zeros(3, device=cuda)

    def work():
        # Sums of long rows count their finished blocks in memory that is cleared first.
        out[0] = values.sum()
        out[1] = (values * 2).sum()
        out[2] = out[0] + out[1]

    graph, count = captured(work)
    assert count >= 1
    for seed in range(5):
        torch.manual_seed(seed)
        values.normal_()
        graph.replay()
        expected = values.double().sum()
        torch.testing.assert_close(
            out.double(), torch.stack([expected, 2 * expected, 3 * expected]), rtol=1e-3, atol=0.1
        )


def test_a_graph_without_memsets_stays_as_it_is(cuda, captured):
    values = torch.ones(16, device=cuda)
    graph, count = captured(lambda: values.mul_(2))
    assert count == 0
    values.fill_(1)
    graph.replay()
    assert values.eq(2).all()
