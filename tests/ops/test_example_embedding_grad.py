"""The gradient of an embedding's table for each example: kernel, reference and autograd agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from privimage import ops
from privimage.ops import reference


@given(
    examples=st.integers(0, 4),
    positions=st.integers(0, 9),
    entries=st.integers(1, 6),
    width=st.integers(1, 40),
    padded=st.booleans(),
    accumulate=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_it_is_autograds_table_by_table(
    examples, positions, entries, width, padded, accumulate, dtype
):
    padding = entries // 2 if padded else None
    indices = torch.randint(entries, (examples, positions))
    grad = torch.randn(examples, positions, width, dtype=dtype)
    arena = torch.full((examples, entries * width + 3), 2.0, dtype=dtype)
    rows = arena[:, : entries * width].view(examples, entries, width)
    ops.example_embedding_grad(indices, grad, rows, padding, accumulate)
    assert (arena[:, entries * width :] == 2).all()
    for example in range(examples):
        table = torch.zeros(entries, width, dtype=dtype, requires_grad=True)
        read = F.embedding(indices[example], table, padding)
        (expected,) = torch.autograd.grad(read, table, grad[example])
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(rows[example], expected + 2.0 * accumulate, **close)
    again = torch.full_like(rows, 2.0)
    reference.example_embedding_grad(
        indices, grad, again, -1 if not padded else padding, accumulate
    )
    torch.testing.assert_close(again, rows, rtol=1e-5, atol=1e-5)


INDICES, GRAD, WEIGHT = torch.zeros(2, 3).long(), torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ((INDICES.int(), GRAD, WEIGHT), TypeError, "indices: .*int32"),
        ((INDICES, GRAD.bfloat16(), WEIGHT), TypeError, "grad: .*bfloat16"),
        ((INDICES, GRAD, WEIGHT.double()), TypeError, "weight: .*float64"),
        ((INDICES[:1], GRAD, WEIGHT), ValueError, r"got \[1, 3\], \[2, 3, 4\]"),
        ((INDICES, GRAD, WEIGHT[:, :, :2]), ValueError, r"and \[2, 5, 2\]"),
        ((INDICES, GRAD, torch.zeros(2, 4, 5).mT), ValueError, "in one piece"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, error, problem):
    with pytest.raises(error, match=problem):
        ops.example_embedding_grad(*arguments)


@pytest.mark.skipif(not ops._library.is_native, reason="the native operators are not built")
@pytest.mark.parametrize(
    "arguments",
    [
        (INDICES[0], GRAD, WEIGHT),
        (INDICES, GRAD[:, :2], WEIGHT),
        (INDICES, GRAD, WEIGHT.double()),
        (INDICES, GRAD.int(), WEIGHT.int()),
        (INDICES, GRAD, torch.zeros(2, 4, 5).mT),
    ],
)
def test_the_native_code_guards_itself(arguments):
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.privimage.example_embedding_grad(*arguments, -1, False)
