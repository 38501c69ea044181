"""Sums over pairs of positions: kernel and reference agree, and give a gradient's squared norm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage import ops
from privimage.ops import reference


@given(
    examples=st.integers(0, 3),
    positions=st.integers(0, 11),
    inputs=st.integers(1, 37),
    outputs=st.integers(1, 21),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_they_are_those_of_the_gradient(examples, positions, inputs, outputs, with_bias, dtype):
    x = torch.randn(examples, positions, inputs, dtype=dtype)
    grad = torch.randn(examples, positions, outputs, dtype=dtype)
    found = ops.gram_sums(x, grad, with_bias)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, reference.gram_sums(x, grad, with_bias), **close)
    wide = torch.cat([x, torch.ones_like(x[..., :1])], 2) if with_bias else x
    gradients = grad.double().mT @ wide.double()
    torch.testing.assert_close(found[0], gradients.square().sum((1, 2)), **close)
    lengths = wide.double().norm(dim=2), grad.double().norm(dim=2)
    torch.testing.assert_close(found[1], (lengths[0] * lengths[1]).sum(1), **close)
    torch.testing.assert_close(found[2:], torch.stack(lengths).sum(2), **close)


X, GRAD = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ((X.int(), GRAD), TypeError, "x: .*int32"),
        ((X, GRAD.double()), TypeError, "float32 and torch.float64"),
        ((X[0], GRAD), ValueError, r"got \[3, 4\] and \[2, 3, 5\]"),
        ((X, GRAD[:, :2]), ValueError, r"got \[2, 3, 4\] and \[2, 2, 5\]"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, error, problem):
    with pytest.raises(error, match=problem):
        ops.gram_sums(*arguments, True)


@pytest.mark.skipif(not ops._library.is_native, reason="the native operators are not built")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((X[0], GRAD), r"x: expected \[\*, \*, \*\], got \[3, 4\]"),
        ((X, GRAD[:, :2]), r"grad: expected \[2, 3, \*\], got \[2, 2, 5\]"),
        ((X.mT, GRAD[:, :1].expand(2, 4, 5)), r"x: expected a contiguous tensor, got strides"),
        ((X, GRAD.double()), "grad: expected Float, got Double"),
        ((X.int(), GRAD.int()), "x: expected Float or Double, got Int"),
    ],
)
def test_the_native_code_guards_itself(arguments, problem):
    with pytest.raises(RuntimeError, match=problem):
        torch.ops.privimage.gram_sums(*arguments, False)
