"""A network's first convolution, from few channels, as a convolution of more channels at half size.

Tensor cores read channels in groups of eight, so a picture's three are padded with five of zeros,
and each of the 7 x 7 taps of a ResNet's first layer reads them. Here the 2 x 2 pixels of a cell
become channels of one pixel, twelve with numbers and four of zeros, and a stride of 2 becomes 1:
the same sums with less padding, and without the strided kernels (Shi et al. 2016 call the
rearrangement sub-pixel; MLPerf's ResNets use it as space-to-depth).
"""

import torch
from torch import Tensor
from torch.nn import functional

FEW = 4  # channels; more fill the groups of eight better than the cells would
GROUP = 8


def suits(image: Tensor, weight: Tensor, stride: object, padding: object, dilation: object) -> bool:
    """Whether `cells_convolution` is the same as `conv2d` of these arguments."""
    pads, kernel = _pair(padding), weight.shape[2:]
    if pads is None or image.ndim != 4 or image.shape[1] > FEW or image.shape[1] != weight.shape[1]:
        return False
    if _pair(stride) != (2, 2) or _pair(dilation) != (1, 1) or min(kernel) < 3:
        return False
    return all(
        size % 2 == 0 and _cells(size, taps, pad)[2] >= 0
        for size, taps, pad in zip(image.shape[2:], kernel, pads, strict=True)
    )


def cells_convolution(
    image: Tensor, weight: Tensor, bias: Tensor | None, padding: object
) -> Tensor:
    """`conv2d(image, weight, bias, stride=2, padding=padding)` with channels last.

    `image` (B, C, H, W), H and W even; `weight` (O, C, h, w).
    """
    if torch.is_autocast_enabled(image.device.type):  # to fewer bytes before they are moved
        dtype = torch.get_autocast_dtype(image.device.type)
        image, weight = image.to(dtype), weight.to(dtype)
    pads = _pair(padding)
    assert pads is not None
    batch, channels, rows, columns = image.shape
    outputs, _, height, width = weight.shape
    lead_y, before_y, after_y, cells_y = _cells(rows, height, pads[0])
    lead_x, before_x, after_x, cells_x = _cells(columns, width, pads[1])
    zeros = -4 * channels % GROUP

    image = image.view(batch, channels, rows // 2, 2, columns // 2, 2)
    cells = image.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows // 2, columns // 2, 4 * channels)
    cells = functional.pad(cells, (0, zeros, before_x, after_x, before_y, after_y))

    taps = (lead_x, 2 * cells_x - width - lead_x, lead_y, 2 * cells_y - height - lead_y)
    weight = functional.pad(weight, taps).view(outputs, channels, cells_y, 2, cells_x, 2)
    weight = weight.permute(0, 2, 4, 3, 5, 1).reshape(outputs, cells_y, cells_x, 4 * channels)
    weight = functional.pad(weight, (0, zeros))
    return _torch_conv2d(cells.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias)


_torch_conv2d = functional.conv2d


def _cells(size: int, taps: int, pad: int) -> tuple[int, int, int, int]:
    """Along one axis: taps of zeros before the first, cells of zeros before and after the picture,
    and the kernel's cells. Output i starts to read at pixel 2 i - pad, in cell i - before."""
    lead = pad % 2
    before = (pad + lead) // 2
    kernel = (taps + lead + 1) // 2
    outputs = (size + 2 * pad - taps) // 2 + 1
    return lead, before, outputs - 1 + kernel - before - size // 2, kernel


def _pair(value: object) -> tuple[int, int] | None:
    """None for what is not one or two numbers (`padding="same"`)."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) in (1, 2):
        return int(value[0]), int(value[-1])
    return None
