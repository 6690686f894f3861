import math

import numpy as np
import pytest
import torch

from convoy.data.layout import Layout
from convoy.data.packing import pack, probe, record_parts, repack, split_record, unpack
from convoy.data.values import NotPackable


def one(tensor, name="x"):
    return {"builder": {name: tensor}}


def bits(tensor):
    if tensor.dtype == torch.bool or not tensor.dtype.is_floating_point:
        return tensor
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def round_trip(tensor):
    """The field that `tensor` was packed into, after checking that every bit comes back."""
    layout, packed = pack(one(tensor), None)
    (field,) = layout.fields
    (values,) = split_record(layout, b"".join(record_parts(layout, packed)))
    back = torch.from_numpy(unpack(field, values).copy())
    back = back.view(torch.bfloat16) if field.dtype == "bfloat16" else back
    assert back.dtype == tensor.dtype and back.shape == tensor.shape
    assert torch.equal(bits(back), bits(tensor))
    return field


LARGE = 4096


@pytest.mark.parametrize(
    ("values", "packed", "divisor"),
    [
        (torch.randint(0, 256, (LARGE,)).float() / 255, "uint8", 255),
        (torch.randint(0, 6, (LARGE,)).double().div(5).float(), "uint8", 5),
        (torch.randint(0, 9, (LARGE,)).float(), "uint8", 1),
        (torch.randint(-9, 9, (LARGE,)).float(), "int8", 1),
        (torch.randint(-300, 300, (LARGE,)).float() / 100, "int16", 100),
        (torch.randint(0, 256, (LARGE,)).double() / 255, "uint8", 255),
        (torch.randint(0, 30000, (LARGE,)), "int16", 1),
        (torch.randint(0, 200, (LARGE,), dtype=torch.int32), "uint8", 1),
        (torch.randint(-(2**30), 2**30, (LARGE,)), "int32", 1),
        (torch.randn(LARGE).half().float(), "float16", 1),
        (torch.randn(LARGE, dtype=torch.float64), "float64", 1),
        (torch.randn(LARGE).float().double(), "float32", 1),
        (torch.randn(LARGE), "float32", 1),
        (torch.rand(LARGE) > 0.5, "bool", 1),
        (torch.randn(LARGE).bfloat16(), "bfloat16", 1),
        (torch.randn(LARGE).half(), "float16", 1),
        (torch.tensor(3.5), "float32", 1),
        (torch.zeros(0, 3), "float32", 1),
    ],
    ids=lambda value: (
        str(value) if not isinstance(value, torch.Tensor) else f"{value.dtype}-{value.numel()}"
    ),
)
def test_the_smallest_dtype_that_gives_every_bit_back(values, packed, divisor):
    field = round_trip(values)
    assert (field.packed, field.divisor) == (packed, divisor)


def test_values_that_are_nearly_a_grid_are_stored_as_they_are():
    values = torch.randint(0, 256, (LARGE,)).float() / 255
    values[17] = (
        math.nextafter(float(values[17]), 2.0) if values[17] == 0 else values[17] * (1 + 2**-23)
    )
    assert round_trip(values).packed == "float32"


def test_minus_zero_is_kept():
    values = torch.randint(0, 9, (LARGE,)).float()
    values[3] = -0.0
    assert round_trip(values).packed == "float16"


def test_small_tensors_are_stored_as_they_are():
    assert round_trip(torch.zeros(30, 5)).packed == "float32"


def test_non_finite_values_are_refused_unless_allowed():
    for bad in (math.nan, math.inf, -math.inf):
        for size in (8, LARGE):
            values = torch.zeros(size)
            values[1] = bad
            with pytest.raises(NotPackable, match="builder.x has values that are not finite"):
                pack(one(values), None)
            layout, (packed,) = pack(one(values), None, allow_non_finite=True)
            assert np.array_equal(
                unpack(layout.fields[0], packed).view(np.int32), values.numpy().view(np.int32)
            )
    with pytest.raises(NotPackable, match="not finite"):
        pack(one(torch.tensor([math.nan], dtype=torch.bfloat16)), None)


def test_nan_is_found_in_a_tensor_whose_layout_is_integers():
    layout = probe([one(torch.ones(LARGE))])
    values = torch.ones(LARGE)
    values[5] = math.nan
    with pytest.raises(NotPackable, match="not finite"):
        pack(one(values), layout)


@pytest.mark.parametrize(
    ("first", "second", "packed"),
    [
        (torch.zeros(LARGE), torch.full((LARGE,), 3001.0), "int16"),
        (torch.zeros(LARGE), torch.randn(LARGE), "float32"),
        (
            torch.randint(0, 6, (LARGE,)).float() / 5,
            torch.randint(0, 256, (LARGE,)).float() / 255,
            "int16",
        ),
        (torch.zeros(LARGE, dtype=torch.int64), torch.full((LARGE,), -1), "int16"),
        (torch.full((LARGE,), 2**20), torch.full((LARGE,), 2**40), "int64"),
        (torch.randn(LARGE).half().float(), torch.randn(LARGE), "float32"),
    ],
)
def test_a_wider_layout_holds_what_the_narrower_one_held(first, second, packed):
    narrow, old = pack(one(first), None)
    wide, new = pack(one(second), narrow)
    assert wide.fields[0].packed == packed
    (again,) = repack(narrow, wide, old)
    assert np.array_equal(unpack(wide.fields[0], again), first.numpy())
    assert np.array_equal(unpack(wide.fields[0], new[0]), second.numpy())


def test_a_layout_that_fits_is_kept():
    layout = probe([one(torch.randint(0, 256, (LARGE,)).float() / 255)])
    assert pack(one(torch.zeros(LARGE)), layout)[0] is layout


def test_shapes_that_differ():
    layout, _ = pack(one(torch.ones(7, 2)), None)
    wider, packed = pack(one(torch.ones(9, 2)), layout)
    assert wider.fields[0].shape is None and wider.record_bytes is None
    (values,) = split_record(wider, b"".join(record_parts(wider, packed)))
    assert values.shape == (9, 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"builder": {"y": torch.ones(2)}},
            "lacks the value builder.x|has, unlike the other samples",
        ),
        ({"builder": {}}, "lacks the value builder.x"),
        (one(torch.ones(2).double()), "builder.x is float64 with 1 dimension.*float32 with 1"),
        (one(torch.ones(2, 1)), "with 2 dimension"),
        (one(torch.ones(2).to_sparse()), "cannot be stored .sparse_coo"),
        (one(torch.ones(2, device="meta")), "cannot be stored"),
        (one(np.ones(2, "f4")), "values of builder are of other kinds"),
        (one([1.0, 2.0]), "lacks the value builder.x"),
    ],
)
def test_what_does_not_fit_the_other_samples_is_told(other, message):
    layout, _ = pack(one(torch.ones(2)), None)
    with pytest.raises(NotPackable, match=message):
        pack(other, layout)


def test_order_of_tensors_is_that_of_the_builders():
    sample = {"b": {"z": torch.ones(2), "a": torch.ones(3)}, "a": {"q": torch.ones(1)}}
    layout, packed = pack(sample, None)
    assert [(field.builder, field.name) for field in layout.fields] == [
        ("b", "z"),
        ("b", "a"),
        ("a", "q"),
    ]
    swapped = {"a": sample["a"], "b": {"a": torch.full((3,), 2.0), "z": torch.ones(2)}}
    same, packed = pack(swapped, layout)
    assert same == layout and packed[1].tolist() == [2, 2, 2]
    assert isinstance(layout, Layout) and layout.record_bytes == 4 * 6
