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
@settings(max_examples=60)
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


@given(
    examples=st.integers(0, 4),
    positions=st.integers(0, 9),
    entries=st.integers(1, 6),
    width=st.integers(1, 40),
    padded=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60)
def test_norms_and_sums_without_tables_are_those_of_tables(
    examples, positions, entries, width, padded, dtype
):
    padding = entries // 2 if padded else None
    indices = torch.randint(entries, (examples, positions))
    grad = torch.randn(examples, positions, width, dtype=dtype)
    rows = torch.empty(examples, entries, width, dtype=dtype)
    ops.example_embedding_grad(indices, grad, rows, padding)
    squares = ops.example_embedding_norms(indices, grad, entries, padding)
    torch.testing.assert_close(squares, ops.squared_norms(rows.flatten(1)), rtol=1e-13, atol=0)
    scales = 2.0**30 * 0.999 / squares.sqrt().clamp(min=1)
    scales[1:2] = 0
    found = torch.full((entries, width), 7)
    ops.recomputed_embedding_sum(indices, grad, scales, found, padding)
    assert torch.equal(found.flatten() - 7, ops.scaled_sum(rows.flatten(1), scales))

    number = -1 if padding is None else padding
    again = reference.example_embedding_norms(indices, grad, entries, number)
    torch.testing.assert_close(again, squares, rtol=1e-5, atol=1e-5)
    close = torch.zeros(entries, width, dtype=torch.int64)
    reference.recomputed_embedding_sum(indices, grad, scales, close, number)
    assert (close - found + 7).abs().max() <= 2**30 * 1e-5


def test_any_number_of_threads_gives_the_same_bits():
    indices, grad = torch.randint(900, (7, 300)), torch.randn(7, 300, 50)
    scales, threads = torch.rand(7, dtype=torch.float64) * 1e6, torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            total = torch.zeros(900, 50, dtype=torch.int64)
            ops.recomputed_embedding_sum(indices, grad, scales, total)
            found.append((ops.example_embedding_norms(indices, grad, 900), total))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


def test_an_example_of_scale_zero_adds_nothing_whatever_it_holds():
    indices, grad = torch.tensor([[1, 1], [0, 2]]), torch.ones(2, 2, 3)
    grad[1] = torch.nan
    total = torch.zeros(3, 3, dtype=torch.int64)
    ops.recomputed_embedding_sum(indices, grad, torch.tensor([5.0, 0.0]).double(), total)
    assert total.tolist() == [[0] * 3, [10] * 3, [0] * 3]


INDICES, GRAD, WEIGHT = torch.zeros(2, 3).long(), torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ((INDICES.int(), GRAD, WEIGHT), TypeError, "indices: .*int32"),
        ((INDICES.to("meta"), GRAD, WEIGHT), TypeError, "indices: .*on cpu as grad, got meta"),
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


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ((INDICES.int(), GRAD, torch.ones(2).double(), WEIGHT[0].long()), TypeError, "indices: "),
        ((INDICES, GRAD[0], torch.ones(2).double(), WEIGHT[0].long()), ValueError, r"\[3, 4\]"),
        ((INDICES, GRAD, torch.ones(2), WEIGHT[0].long()), TypeError, "scales: .*float32"),
        ((INDICES, GRAD, torch.ones(2).double(), WEIGHT[0]), TypeError, "weight_sum: .*float32"),
        (
            (INDICES, GRAD, torch.ones(2).double(), WEIGHT.long()),
            ValueError,
            r"\[entries, 4\], got",
        ),
    ],
)
def test_sums_without_tables_refuse_bad_arguments_in_a_sentence(arguments, error, problem):
    with pytest.raises(error, match=problem):
        ops.recomputed_embedding_sum(*arguments)


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
