"""Traces of torch.profiler: one that was recorded on two ranks of a CPU, and events as a GPU's
kernels have them."""

import gzip
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from convoy.errors import ConvoyError
from convoy.run import trace, trace_page
from convoy.run.trace import Breakdown, breakdown

RECORDED = Path(__file__).parent / "traces" / "two_ranks_cpu.json.gz"
MS = 1000.0
STEP = 100.0  # ms
COMPUTE_STREAM, NCCL_STREAM, COPY_STREAM = 7, 20, 24
NUMBERS = count()


def event(name: str, at: float, took: float, cat: str, **args: Any) -> dict[str, Any]:
    """In milliseconds, as Kineto writes it."""
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": 0,
        "tid": args.get("stream", 1),
        "ts": at * MS,
        "dur": took * MS,
        "args": {"correlation": next(NUMBERS), **args},
    }


def kernel(name: str, at: float, took: float, stream: int = COMPUTE_STREAM) -> dict[str, Any]:
    return event(name, at, took, "kernel", stream=stream, device=0)


def steps(*of_one: dict[str, Any], waits: float = 1.0, number: int = 2) -> list[dict[str, Any]]:
    """The same step `number` times, and the beginning of one more."""
    found = []
    for index in range(number + 1):
        begin = index * STEP
        found.append(event("step: data_wait", begin, waits, "user_annotation"))
        # The profiler repeats ranges on the device's side.
        found.append(event("step: data_wait", begin, waits, "gpu_user_annotation"))
        if index < number:
            found.append(event("step: forward", begin + waits, 20, "user_annotation"))
            found += [{**one, "ts": one["ts"] + begin * MS} for one in of_one]
    return found


CONV, WGRAD = "sm90_xmma_fprop_implicit_gemm_bf16", "cudnn::cnn::wgrad2d_grouped_direct_kernel"
NCCL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def test_nccl_beside_the_backward_pass_on_another_stream():
    found = breakdown(
        steps(
            kernel(CONV, 2, 38),
            kernel(WGRAD, 40, 40),
            kernel(NCCL, 60, 15, NCCL_STREAM),
            kernel(NCCL, 76, 20, NCCL_STREAM),  # 16 ms of it after the last kernel
            kernel("multi_tensor_apply_kernel<Adam>", 96, 4),
        )
    )
    assert (found.steps, found.step, found.on_gpu) == (2, STEP, True)
    assert found.communication == pytest.approx(35)
    assert found.communication_hidden == pytest.approx(19)
    assert found.share_hidden == pytest.approx(19 / 35)
    assert found.compute == pytest.approx(82)
    assert found.kinds == pytest.approx({"convolution": 78, "communication": 35, "optimizer": 4})
    assert "Bound by communication: 16%" in found.verdict()
    assert "(it hides 54%)" in found.verdict()


def test_the_parts_make_up_the_step():
    found = breakdown(
        steps(
            kernel(CONV, 30, 40),
            event("Memcpy HtoD (Pinned -> Device)", 20, 15, "gpu_memcpy", stream=COPY_STREAM),
            kernel(NCCL, 65, 10, NCCL_STREAM),
            waits=12,
        )
    )
    assert found.copies == pytest.approx(10)  # the rest lies beside a kernel
    assert found.communication_shown == pytest.approx(5)
    assert found.waits_for_data == pytest.approx(12)  # idle while the loader is waited for
    assert found.host_gaps == pytest.approx(33)
    parts = [value for _, value, _ in trace_page.parts(found)]
    assert sum(parts) == pytest.approx(STEP)
    assert found.host_parts == pytest.approx({"data_wait": 12, "forward": 20})


def test_copies_between_gpus_are_communication():
    found = breakdown(
        steps(
            kernel(CONV, 2, 60),
            event("Memcpy PtoP (Device -> Device)", 50, 20, "gpu_memcpy", stream=NCCL_STREAM),
            kernel("c10d::symmetric_memory::barrier_kernel(unsigned int**)", 70, 1, NCCL_STREAM),
            event("Memcpy DtoD (Device -> Device)", 80, 5, "gpu_memcpy", stream=COPY_STREAM),
        )
    )
    assert found.communication == pytest.approx(21)
    assert found.communication_hidden == pytest.approx(12)
    assert found.copies == pytest.approx(5)


@pytest.mark.parametrize(
    ("of_one", "waits", "said"),
    [
        ([kernel(CONV, 25, 75)], 24.0, "Bound by data: for 24% of a step the GPU waits"),
        ([kernel(CONV, 1, 60)], 1.0, "Bound by the host: for 39% of a step the GPU has nothing"),
        ([kernel(CONV, 2, 90), kernel("fmha_fwd", 92, 8)], 1.0, "largest part is convolution, 92%"),
        (
            [kernel(CONV, 15, 85), event("Memcpy HtoD", 1, 14, "gpu_memcpy", stream=24)],
            1.0,
            "Bound by copies: 14% of a step",
        ),
    ],
)
def test_what_bounds_it(of_one, waits, said):
    assert said in breakdown(steps(*of_one, waits=waits)).verdict()


def test_a_step_that_is_one_graph():
    launch = event("cudaGraphLaunch", 2, 0.1, "cuda_runtime")
    found = breakdown(steps(launch, kernel(CONV, 2, 40)))
    assert found.one_graph and "speed=max makes" not in found.advice()
    without = breakdown(steps(kernel(CONV, 2, 40)))
    assert not without.one_graph and "speed=max makes" in without.advice()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x128_64x4_1x2_h_bz_TNT", "matrix products"),
        ("void at::native::batch_norm_collect_statistics_channels_last", "normalization"),
        ("triton_poi_fused_add_relu_3", "elementwise"),
        ("triton_red_fused_native_batch_norm_backward_7", "normalization"),
        ("void at::native::max_pool_backward_nhwc", "pooling"),
        ("pytorch_flash::flash_fwd_kernel", "attention"),
        ("void at::native::index_elementwise_kernel", "indexing and sorting"),
        ("something_of_a_fork", "other"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert trace.kind_of(kernel(name, 0, 1)) == kind


def test_a_recorded_trace_of_two_ranks_on_the_cpu():
    found = trace.read(RECORDED)
    assert (found.steps, found.on_gpu) == (3, False)
    assert found.step == pytest.approx(17.61, abs=0.01)
    assert found.host_parts.keys() == {"data_wait", "forward", "backward"}
    assert found.top[0].name == "gloo:all_reduce" and found.top[0].calls == 2
    assert 0 < found.communication_hidden < found.communication < found.step
    assert sum(value for _, value, _ in trace_page.parts(found)) == pytest.approx(found.step)
    assert found.verdict().startswith("Bound by communication")


def test_an_operators_own_time_is_less_what_it_calls():
    inner = event("aten::addmm", 32, 6, "cpu_op")
    outer = event("aten::linear", 30, 10, "cpu_op")
    found = breakdown(steps(outer, inner))
    assert {one.name: round(one.ms, 6) for one in found.top} == {
        "aten::addmm": 6,
        "aten::linear": 4,
    }


def test_files_that_are_no_traces(tmp_path):
    path = tmp_path / "trace.json.gz"
    for content in (
        b"",
        gzip.compress(b"{}"),
        gzip.compress(b'{"traceEvents": [{"ph"'),
        b"\x1f\x8b",
    ):
        path.write_bytes(content)
        with pytest.raises(ConvoyError, match="cannot be read as a trace"):
            trace.read(path)
    path.write_text(json.dumps({"traceEvents": steps(number=0)}))
    with pytest.raises(ConvoyError, match="holds no whole step"):
        trace.read(path)


def test_the_page(tmp_path):
    found = breakdown(steps(kernel("<b>convolution</b>", 2, 40), kernel(NCCL, 30, 20, 20)))
    pytest.importorskip("matplotlib")
    trace_page.draw(tmp_path / "profile.png", found, "run")
    page = trace_page.write(tmp_path / "profile.html", found, "run", "trace.json.gz").read_text()
    assert found.verdict() in page and "data:image/png;base64," in page
    assert "&lt;b&gt;convolution" in page and "<b>convolution" not in page
    assert "60% of it is hidden" in page
    assert isinstance(found, Breakdown) and json.dumps(found.as_json())


def test_the_host_may_be_steps_ahead_of_the_kernels():
    """Three steps of 10 ms on the host, whose kernels take 100 ms each and run when they can."""
    events = []
    for index in range(4):
        events.append(event("step: data_wait", 10 * index, 1, "user_annotation"))
        if index < 3:
            events.append(
                event("cudaGraphLaunch", 10 * index + 5, 1, "cuda_runtime", correlation=index)
            )
            for part in range(2):
                ran = kernel(CONV, 7 + 100 * index + 50 * part, 50)
                events.append({**ran, "args": {**ran["args"], "correlation": index}})
    events.append(event("cudaGraphLaunch", 35, 1, "cuda_runtime", correlation=3))
    after = kernel(CONV, 307, 50)
    events.append({**after, "args": {**after["args"], "correlation": 3}})
    found = breakdown(events)
    assert found.one_graph and found.steps == 3
    assert found.step == pytest.approx(100) and found.compute == pytest.approx(100)
    assert found.kinds == pytest.approx({"convolution": 100}) and found.top[0].calls == 2
