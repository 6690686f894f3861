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


MAPS = [{}, {"reduction": "sum"}, {"reduction": "none"}, {"ignore_index": 3}, {"weight": True}]


@pytest.mark.parametrize("arguments", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_entropy_of_a_map_has_the_values_and_gradients_of_torch(arguments, dtype):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (2, 6, 7), generator=generator)
    logits = torch.randn(2, 5, 6, 7, generator=generator).to(dtype)
    if "weight" in arguments:
        arguments = arguments | {"weight": torch.rand(5, generator=generator, dtype=dtype)}

    def entropy(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target, **arguments).float()

    theirs, their_gradient = _with_gradient(entropy, logits)
    with operators.replaced():
        ours, our_gradient = _with_gradient(entropy, logits)
    close = (
        {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    )
    torch.testing.assert_close(ours, theirs, **close)
    torch.testing.assert_close(our_gradient, their_gradient, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_kernels_for_the_entropy_of_a_map_give_what_torch_gives(
    cuda, dtype, layout, weighted, reduction
):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 7, (3, 20, 37), generator=generator).to(cuda)
    logits = torch.randn(3, 7, 20, 37, generator=generator).to(cuda, dtype)
    logits = logits.contiguous(memory_format=layout)
    weight = torch.rand(7, generator=generator).to(cuda) if weighted else None

    def entropy(logits: Tensor) -> Tensor:
        result = functional.cross_entropy(
            logits, target, weight, ignore_index=2, reduction=reduction
        )
        return (result * torch.linspace(0.5, 1, result.numel(), device=cuda).view_as(result)).sum()

    theirs, their_gradient = _with_gradient(lambda logits: entropy(logits.float()), logits)
    with operators.replaced():
        assert "EntropyOfMap" in _graph_of(entropy(logits.clone().requires_grad_()))
        ours, our_gradient = _with_gradient(entropy, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    exact = dtype == torch.float32
    close = {"rtol": 1e-5, "atol": 1e-6} if exact else {"rtol": 1e-2, "atol": 1e-6}
    torch.testing.assert_close(our_gradient, their_gradient, **close)
    with operators.replaced():
        logits[0, 0, 0, 0], target[0, 0, 0] = 1.0, 9
        assert entropy(logits).isnan()


def test_a_class_that_a_map_does_not_have_is_seen_in_the_loss():
    logits, target = torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    target[0, 0, 1] = 3
    with operators.replaced():
        assert functional.cross_entropy(logits, target).isnan()
        assert not functional.cross_entropy(logits, target, ignore_index=3).isnan()


@pytest.mark.parametrize(
    ("channels", "shape", "kernel", "padding"),
    [
        (3, (32, 64), 7, 3),  # ResNet's first layer
        (1, (16, 16), 7, 3),  # the lidar's
        (3, (16, 12), 3, 1),
        (2, (8, 10), (5, 3), (2, 1)),
        (4, (12, 12), (4, 6), (1, 2)),
        (3, (10, 10), 7, 0),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_first_convolution_has_the_values_and_gradients_of_torch(
    channels, shape, kernel, padding, bias
):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 8, kernel, stride=2, padding=padding, bias=bias).double()
    image = torch.randn(2, channels, *shape, dtype=torch.float64)

    def outcome() -> list[Tensor]:
        layer.zero_grad()
        result, gradient = _with_gradient(layer, image)
        return [result, gradient, *[entry.grad.clone() for entry in layer.parameters()]]

    theirs = outcome()
    with operators.replaced(channels_last=True):
        assert "Conv" in _graph_of(layer(image))
        ours = outcome()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 4, 7, stride=2, padding=3),  # many channels
        nn.Conv2d(3, 4, 7, padding=3),  # no stride
        nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        nn.Conv2d(3, 4, 1, stride=2),
        nn.Conv2d(3, 3, 3, stride=2, groups=3),
        nn.Conv2d(3, 4, 3, padding="same"),
    ],
)
def test_other_convolutions_are_torchs(layer):
    image = torch.rand(2, layer.in_channels, 12, 12)
    expected = layer(image)
    with operators.replaced(channels_last=True):
        assert torch.equal(layer(image), expected)


def test_a_picture_of_odd_size_is_convolved_by_torch():
    layer, image = nn.Conv2d(3, 4, 7, stride=2, padding=3), torch.rand(1, 3, 11, 13)
    expected = layer(image)
    with operators.replaced(channels_last=True):
        assert torch.equal(layer(image), expected)


def test_on_the_host_torch_takes_the_largest():
    image = torch.rand(1, 4, 8, 8)
    with operators.replaced():
        assert "MaxPool2D" in _graph_of(nn.MaxPool2d(3, 2, 1)(image.requires_grad_()))


@pytest.mark.parametrize("kind", ["random", "many equal ones", "not a number", "no numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiled", [False, True])
def test_max_pooling_has_the_values_and_gradients_of_torch(cuda, kind, dtype, layout, compiled):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 24, 10, 34, generator=generator)
    if kind == "many equal ones":
        image = image.relu()
    elif kind == "not a number":
        image[0, :, 3, 4] = float("nan")
    elif kind == "no numbers":
        image[1] = float("-inf")
    image = image.to("cuda", dtype).to(memory_format=layout)
    layer = nn.MaxPool2d(3, 2, 1)

    def outcome(pool) -> tuple[Tensor, Tensor]:
        leaf = image.clone().requires_grad_()
        result = pool(leaf)
        weights = torch.linspace(-1, 1, result.numel(), device="cuda").view(result.shape)
        (result.nan_to_num(0, 0, 0) * weights).sum().backward()
        assert leaf.grad is not None
        return result.detach(), leaf.grad

    theirs = outcome(layer)
    with operators.replaced():
        torch._dynamo.reset()
        ours = outcome(torch.compile(layer, dynamic=False) if compiled else layer)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True)
    close = (
        {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    )
    torch.testing.assert_close(ours[1], theirs[1], **close)


def test_with_the_operators_a_network_of_these_is_deterministic_on_a_gpu(cuda):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3),
        nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d((4, 4)),
        nn.Upsample(size=(8, 8), mode="bilinear"),
        nn.Conv2d(16, 5, 1),
    ).cuda()
    image = torch.rand(2, 3, 64, 64, device="cuda")
    target = torch.randint(0, 5, (2, 8, 8), device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with operators.replaced(channels_last=True):
            runs = []
            for _ in range(2):
                network.zero_grad()
                functional.cross_entropy(network(image), target).backward()
                runs.append([entry.grad.clone() for entry in network.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
