"""The max-pooling of a ResNet's first layer (3 x 3, stride 2) with a backward pass that gathers.

torch's backward pass adds to memory from many threads, in an order of its own; compiled, it looks
at each pixel's windows again. Here a program has four pixels and the four windows that hold them.
The values, and of equal ones the pixel that gets the gradient, are torch's.
"""

from torch import Tensor

from convoy.training.speed.assignment import available

_TRITON = available()  # once: a compiler traces `suits`


def suits(image: Tensor, kernel: object, stride: object, padding: object) -> bool:
    """Whether `max_pool` covers this pooling."""
    return (
        image.is_cuda
        and image.ndim == 4
        and image.is_floating_point()
        and image.element_size() <= 4
        and image.shape[2] % 2 == 0
        and image.shape[3] % 2 == 0
        and _is(kernel, 3)
        and (stride is None or _is(stride, 2))
        and _is(padding, 1)
        and _TRITON
    )


def max_pool(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, H / 2, W / 2), channels last."""
    from convoy.training.speed.max_pool_kernel import pooled

    values: Tensor = pooled(image)[0]
    return values


def _is(value: object, number: int) -> bool:
    return value == number or (isinstance(value, (tuple, list)) and set(value) == {number})
