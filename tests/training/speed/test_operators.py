"""Values and gradients of the replaced operators against torch's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convoy.training.speed import operators

SIZES = [
    ((8, 32), {"size": (64, 256)}),  # TransFuser's, image branch
    ((8, 8), {"size": (64, 64)}),
    ((8, 8), {"size": (8, 8)}),
    ((8, 8), {"scale_factor": 2}),
    ((64, 64), {"size": (128, 256)}),
    ((7, 5), {"size": (13, 3)}),  # up one axis, down the other
    ((9, 4), {"scale_factor": (1.7, 0.6)}),
    ((5, 6), {"size": 11}),
    ((1, 3), {"size": (4, 1)}),
]


@pytest.mark.parametrize(("shape", "arguments"), SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resizing_has_the_values_and_gradients_of_torch(shape, arguments, align_corners, layout):
    arguments = arguments | {"mode": "bilinear", "align_corners": align_corners}
    _compare(lambda image: functional.interpolate(image, **arguments), shape, layout)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 256), (8, 32)),
        ((8, 32), (8, 32)),
        ((64, 64), 1),
        ((7, 5), (3, 2)),
        ((5, 6), (7, 9)),
        ((9, 4), (None, 2)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_has_the_values_and_gradients_of_torch(shape, size, layout):
    _compare(nn.AdaptiveAvgPool2d(size), shape, layout)


def test_modules_and_functions_are_replaced_only_inside():
    image = torch.rand(1, 2, 4, 4)
    resize = nn.Upsample(scale_factor=2, mode="bilinear")
    with operators.replaced():
        assert functional.interpolate is operators.interpolate
        assert "MmBackward" in _graph_of(resize(image.requires_grad_()))
    assert functional.interpolate is not operators.interpolate
    assert "UpsampleBilinear2DBackward" in _graph_of(resize(image))


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (8, 8), "mode": "nearest"},
        {"size": (3, 3), "mode": "bilinear", "antialias": True},
        {"scale_factor": 1.5, "mode": "bicubic"},
    ],
)
def test_what_the_fast_form_does_not_cover_is_torchs(arguments):
    image = torch.rand(2, 3, 4, 4)
    expected = functional.interpolate(image, **arguments)
    with operators.replaced():
        assert torch.equal(functional.interpolate(image, **arguments), expected)


def test_resizing_is_the_same_on_each_run_and_keeps_float32_under_autocast():
    image = torch.rand(2, 3, 8, 8)
    with operators.replaced(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = functional.interpolate(image, size=(16, 16), mode="bilinear")
        second = functional.interpolate(image, size=(16, 16), mode="bilinear")
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


def _compare(function, shape, layout) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 16, *shape, generator=generator).to(memory_format=layout)
    theirs, their_gradient = _with_gradient(function, image)
    with operators.replaced():
        ours, our_gradient = _with_gradient(function, image)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-5)


def _with_gradient(function, image: Tensor) -> tuple[Tensor, Tensor]:
    image = image.clone().requires_grad_()
    result = function(image)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    (result * weights).sum().backward()
    assert image.grad is not None
    return result.detach(), image.grad


def _graph_of(result: Tensor) -> str:
    names, edges = [], [result.grad_fn]
    while edges:
        node = edges.pop()
        if node is not None:
            names.append(type(node).__name__)
            edges += [following for following, _ in node.next_functions]
    return " ".join(names)


def test_what_is_enlarged_can_come_out_with_channels_last():
    image = torch.rand(2, 3, 4, 4)
    expected = functional.interpolate(image, size=(8, 8), mode="bilinear")
    with operators.replaced(channels_last=True):
        resized = functional.interpolate(image, size=(8, 8), mode="bilinear")
    assert resized.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(resized, expected)


def test_a_compiler_may_trace_them_before_and_after_they_ran():
    """Without an installed C++ compiler too: the graph is traced, differentiated, and run as it
    is."""
    resize = nn.Sequential(nn.Upsample(size=(6, 10), mode="bilinear"), nn.AdaptiveAvgPool2d((3, 2)))
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    with operators.replaced():
        expected = resize(image)
        torch._dynamo.reset()
        compiled = torch.compile(resize, backend="aot_eager", dynamic=False)
        result = compiled(image)
        result.sum().backward()
        again = resize(image)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(again, expected)
