"""Sums with given scales: kernel and reference agree, recomputed parts are the kept ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage import ops
from privimage.ops import reference

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


def _by_reference(parts, scales):
    total = torch.full(parts.shape[1:], 7)
    reference.scaled_sum(parts, scales, total, False)
    first = total.clone()
    reference.scaled_sum(parts, scales, total, True)
    assert torch.equal(total, 2 * first)
    return first


@given(
    examples=st.integers(0, 3),
    draws=st.integers(1, 3),
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 37), st.integers(1, 21)),
    taps=pair,
    stride=pair,
    padding=pair,
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
@settings(max_examples=60)
def test_what_is_recomputed_is_what_was_kept(
    examples, draws, groups, channels, taps, stride, padding, with_bias, dtype, layout
):
    inputs, outputs = channels
    geometry = (stride, padding, (1, 1), groups)
    shape = (outputs * groups, inputs, *taps)
    x = torch.randn(examples * draws, inputs * groups, 6, 5, dtype=dtype)
    pixels = [(n + 2 * p - t) // s + 1 for n, p, t, s in zip((6, 5), padding, taps, stride)]  # noqa: B905
    grad = torch.randn(examples * draws, shape[0], *pixels, dtype=dtype)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    size = torch.Size(shape).numel()
    kept = torch.full((examples, size + shape[0]), float("nan"), dtype=dtype)
    weight, bias = kept[:, :size].view(examples, *shape), kept[:, size:]
    ops.example_weight_grad(x, grad, weight, bias if with_bias else None, geometry)
    kept = kept if with_bias else kept[:, :size]

    rows = kept.clone().fill_(float("nan"))
    weight = rows[:, :size].view(examples, *shape)
    bias = rows[:, size:] if with_bias else None
    biases = [bias] if with_bias else []
    measured = ops.measured_weight_grads([x], [grad], [weight], biases, geometry)
    assert torch.equal(rows, kept)

    squares = ops.squared_norms(kept)
    torch.testing.assert_close(measured, squares, rtol=1e-13, atol=0)
    torch.testing.assert_close(squares, kept.double().square().sum(1), rtol=1e-13, atol=0)
    again = ops.example_weight_norms(x, grad, examples, taps, with_bias, geometry)
    torch.testing.assert_close(again, squares, rtol=1e-13, atol=0)
    scales = 2.0**30 * 0.999 / squares.sqrt().clamp(min=1)
    scales[1:2] = 0
    expected = _by_reference(kept, scales)
    assert torch.equal(ops.scaled_sum(kept, scales), expected)
    total = torch.full(expected.shape, 7)
    ops.scaled_sum(kept, scales, total, accumulate=True)
    assert torch.equal(total - 7, expected)
    totals = torch.full(shape, 7), torch.full(shape[:1], 7) if with_bias else None
    for accumulate, start in ((True, 7), (False, 0)):
        ops.recomputed_sum(x, grad, scales, *totals, geometry, accumulate)
        found = torch.cat([total.flatten() for total in totals if total is not None])
        assert torch.equal(found - start, expected)

    # The reference computes parts in another order.
    measured = reference.measured_weight_grads([x], [grad], [weight], biases, *geometry)
    torch.testing.assert_close(measured, squares, rtol=1e-13, atol=0)
    norms = reference.example_weight_norms(x, grad, examples, taps, with_bias, *geometry)
    torch.testing.assert_close(norms, squares, rtol=1e-4, atol=0)
    reference.recomputed_sum(x, grad, scales, *totals, *geometry, False)
    close = torch.cat([total.flatten() for total in totals if total is not None])
    assert (close - expected).abs().max() <= 2**30 * 1e-4


@pytest.mark.parametrize("function", [ops.scaled_sum, _by_reference])
def test_an_example_of_scale_zero_adds_nothing_whatever_it_holds(function):
    parts = torch.tensor([[1.5, -2.5], [float("nan"), float("inf")]])
    scales = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert function(parts, scales).tolist() == [3, -5]


def test_many_examples_and_parameters_in_any_number_of_threads():
    parts = torch.randn(21, 9001)
    scales = torch.rand(21, dtype=torch.float64) * 1e8
    expected, threads = _by_reference(parts, scales), torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert torch.equal(ops.scaled_sum(parts, scales), expected)
    finally:
        torch.set_num_threads(threads)


X, GRAD = torch.ones(4, 6, 5, 5), torch.ones(4, 4, 5, 5)
SCALES = torch.ones(2, dtype=torch.float64)
GEOMETRY = ((1, 1), (1, 1), (1, 1), 2)


@pytest.mark.parametrize(
    ("call", "error", "problem"),
    [
        (lambda: ops.squared_norms(torch.ones(3)), ValueError, "parts: expected .*shape .3."),
        (lambda: ops.squared_norms(torch.ones(3, 2, dtype=torch.int32)), TypeError, "int32"),
        (
            lambda: ops.squared_norms(torch.ones(3, 2), [slice(0, 1), slice(2, 3)]),
            ValueError,
            r"columns: expected some of 2, got slice\(2, 3",
        ),
        (lambda: ops.scaled_sum(torch.ones(3, 2), SCALES), ValueError, "scales: .*of 3, got .2."),
        (lambda: ops.scaled_sum(torch.ones(2, 2), SCALES.float()), TypeError, "torch.float32"),
        (lambda: ops.scaled_sum(torch.ones(2, 2), SCALES, SCALES), TypeError, "total: .*float64"),
        (
            lambda: ops.example_weight_norms(X, GRAD.double(), 2, (3, 3), True, GEOMETRY),
            TypeError,
            "x, grad: .* torch.float32 and torch.float64",
        ),
        (
            lambda: ops.recomputed_sum(X, GRAD, SCALES, torch.ones(4, 3, 3, 3), None, GEOMETRY),
            TypeError,
            "weight_sum: .*got torch.float32",
        ),
        (
            lambda: ops.recomputed_sum(X[0], GRAD, SCALES, torch.ones(1), None, GEOMETRY),
            ValueError,
            "x, grad: expected",
        ),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(call, error, problem):
    with pytest.raises(error, match=problem):
        call()


@pytest.mark.skipif(not ops._library.is_native, reason="the native operators are not built")
@pytest.mark.parametrize(
    "call",
    [
        lambda ops: ops.squared_norms(torch.ones(3, 4).T, [0, 3]),
        lambda ops: ops.squared_norms(torch.ones(3, 4), [0, 5]),
        lambda ops: ops.squared_norms(torch.ones(3, 4), [-1, 3]),
        lambda ops: ops.squared_norms(torch.ones(3, 4), [3, 2]),
        lambda ops: ops.squared_norms(torch.ones(3, 4), [0, 2, 3]),
        lambda ops: ops.scaled_sum(torch.ones(3, 4), SCALES, torch.ones(4).long(), False),
        lambda ops: ops.scaled_sum(torch.ones(2, 4), SCALES, torch.ones(3).long(), False),
        lambda ops: ops.example_weight_norms(X, GRAD, 3, [3, 3], True, *map(list, GEOMETRY[:3]), 2),
        lambda ops: ops.example_weight_norms(X, GRAD, -1, [3, 3], True, [1], [1], [1], 2),
        lambda ops: ops.example_weight_norms(X, GRAD, 2, [3, 3], True, [1, 1], [0, 0], [1, 1], 2),
        lambda ops: ops.recomputed_sum(
            X, GRAD, SCALES, torch.ones(4, 2, 3, 3).long(), None, *map(list, GEOMETRY[:3]), 2, True
        ),
    ],
)
def test_the_native_code_guards_itself(call):
    with pytest.raises(RuntimeError, match=r"expected|do not fit|channels|negative"):
        call(torch.ops.privimage)
