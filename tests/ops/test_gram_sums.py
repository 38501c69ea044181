"""Sums over pairs of positions: kernel and reference agree, and give a gradient's squared norm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from privimage import ops
from privimage.ops import reference

AXES = st.tuples(
    st.integers(1, 7),  # size
    st.integers(1, 4),  # taps
    st.integers(1, 3),  # stride
    st.integers(0, 3),  # padding
    st.integers(1, 2),  # dilation
).filter(lambda axis: axis[0] + 2 * axis[3] > axis[4] * (axis[1] - 1))


def gradients(x, grad, examples, taps, with_bias, geometry):
    """[examples, parameters] in float64, by autograd, an example at a time."""
    rows = []
    for one, other in zip(x.double().chunk(examples), grad.double().chunk(examples), strict=True):
        weight = torch.zeros(grad.shape[1], x.shape[1], *taps).double().requires_grad_()
        bias = torch.zeros(grad.shape[1]).double().requires_grad_() if with_bias else None
        output = F.conv2d(one, weight, bias, *geometry)
        wanted = [weight] + ([bias] if with_bias else [])
        found = torch.autograd.grad(output, wanted, other)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def lengths(x, grad, examples, taps, with_bias, geometry):
    """|u_t| and |g_t|, float64 [examples, positions]."""
    stride, padding, dilation, _ = geometry
    of_x = F.unfold(x.double(), taps, dilation, padding, stride).square().sum(1) + with_bias
    return [each.sqrt().view(examples, -1) for each in (of_x, grad.double().square().sum(1))]


@given(
    height=AXES,
    width=AXES,
    examples=st.integers(1, 3),
    draws=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    with_bias=st.booleans(),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=50)
def test_they_are_those_of_the_gradient(
    height, width, examples, draws, channels, with_bias, last, dtype
):
    size, taps, *rest = zip(height, width, strict=True)
    geometry = (*rest, 1)
    x = torch.randn(examples * draws, channels[0], *size, dtype=dtype)
    like = F.conv2d(x, x.new_zeros(channels[1], channels[0], *taps), None, *geometry)
    grad = torch.randn_like(like)
    if last:
        x, grad = (each.contiguous(memory_format=torch.channels_last) for each in (x, grad))
    call = (x, grad, examples, taps, with_bias, geometry)
    found = ops.gram_sums(*call)
    close = {"rtol": 1e-12, "atol": 1e-12}
    expected = reference.gram_sums(x, grad, examples, taps, with_bias, *geometry)
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(found[0], gradients(*call).square().sum(1), **close)
    of_x, of_grad = lengths(*call)
    torch.testing.assert_close(found[1], (of_x * of_grad).sum(1), **close)
    torch.testing.assert_close(found[2:], torch.stack([of_x, of_grad]).sum(2), **close)


ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)


@pytest.mark.parametrize(
    ("channels", "pixels", "taps"), [((301, 140), 37, 1), ((130, 3), 19, 3), ((3, 257), 1, 1)]
)
def test_wide_layers_and_many_positions_are_added_up_in_pieces(channels, pixels, taps):
    geometry = ONE_TAP if taps == 1 else ((1, 1), (0, 1), (1, 1), 1)
    x, grad = torch.randn(2, channels[0], taps, pixels), torch.randn(2, channels[1], 1, pixels)
    call = (x, grad, 2, (taps, taps), True, geometry)
    expected = reference.gram_sums(*call[:5], *geometry)
    torch.testing.assert_close(ops.gram_sums(*call), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("examples", [0, 2])
def test_what_is_empty_adds_nothing(examples):
    x, grad = torch.randn(examples, 3, 0, 2), torch.randn(examples, 4, 0, 2)
    found = ops.gram_sums(x, grad, examples, (1, 1), True, ONE_TAP)
    assert torch.equal(found, torch.zeros(4, examples).double())


def test_a_pixel_that_no_tap_reads_is_not_seen():
    x, grad = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 2, 2)
    geometry = ((2, 2), (0, 0), (1, 1), 1)
    expected = ops.gram_sums(x, grad, 2, (3, 3), False, geometry)
    x[:, :, 5] = torch.nan
    x[:, :, :, 5] = torch.inf
    assert torch.equal(ops.gram_sums(x, grad, 2, (3, 3), False, geometry), expected)


X, GRAD = torch.zeros(2, 3, 5, 4), torch.zeros(2, 7, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ((X.int(), GRAD, ONE_TAP), TypeError, "x: .*int32"),
        ((X, GRAD.double(), ONE_TAP), TypeError, "float32 and torch.float64"),
        ((X[0], GRAD, ONE_TAP), ValueError, r"got \[3, 5, 4\] and \[2, 7, 5, 4\]"),
        ((X, GRAD, (*ONE_TAP[:3], 3)), ValueError, "geometry: expected one group, got 3"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, error, problem):
    with pytest.raises(error, match=problem):
        ops.gram_sums(*arguments[:2], 2, (1, 1), True, arguments[2])


NUMBERS = {"examples": 2, "taps": [1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}


@pytest.mark.skipif(not ops._library.is_native, reason="the native operators are not built")
@pytest.mark.parametrize(
    ("x", "grad", "numbers", "problem"),
    [
        (X[0], GRAD, {}, r"x: expected \[\*, \*, \*, \*\], got \[3, 5, 4\]"),
        (X, GRAD[:, :, :2], {}, "grad: expected height 5, got 2"),
        (X, GRAD[:1], {}, "grad: expected 2 rows, got 1"),
        (X, GRAD, {"examples": 3}, "x: 2 rows do not fit 3 examples"),
        (X, GRAD, {"examples": -1}, "examples: expected no negative number, got -1"),
        (X, GRAD, {"taps": [3, 1]}, "grad: expected height 3, got 5"),
        (X, GRAD, {"taps": [0, 1]}, "geometry: expected positive taps, stride and dilation"),
        (X, GRAD, {"stride": [1]}, "geometry: expected two numbers each"),
        (X, GRAD, {"padding": [-1, 0]}, "geometry: expected .*padding from 0 on"),
        (X, GRAD, {"groups": 3}, "groups: expected 1, got 3"),
        (X.new_zeros(2, 1, 65, 64), X.new_zeros(2, 1, 65, 64), {}, "at most 4096 .* 4160 and 4160"),
        (X, GRAD.double(), {}, "grad: expected Float, got Double"),
        (X.int(), GRAD.int(), {}, "x: expected Float or Double, got Int"),
    ],
)
def test_the_native_code_guards_itself(x, grad, numbers, problem):
    with pytest.raises(RuntimeError, match=problem):
        torch.ops.privimage.gram_sums(
            x, grad, with_bias=False, **{**NUMBERS, "groups": 1, **numbers}
        )
