"""The bound of a norm by Gram matrices: never below what is added, hardly above, one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from truth import cancelling

from privimage import ops
from privimage.dp.gradients.ghost import ghost_squares

ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)
SHAPES = {
    "tokens": ((1, 24), (1, 1), ONE_TAP),
    "3x3": ((4, 3), (3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "stride": ((5, 6), (3, 3), ((2, 2), (1, 1), (1, 1), 1)),
    "apart": ((6, 7), (2, 3), ((2, 1), (0, 2), (3, 2), 1)),
    "1x1 stride": ((6, 6), (1, 1), ((2, 3), (0, 0), (1, 1), 1)),
}
"""Of a layer: its input's height and width, taps, geometry."""


def added(x, grad, examples, taps, geometry, *, with_bias):
    """The norms of what the kernel computes, float64 [examples]."""
    weight = torch.empty(examples, grad.shape[1], x.shape[1], *taps, dtype=x.dtype)
    bias = torch.empty(examples, grad.shape[1], dtype=x.dtype) if with_bias else None
    ops.example_weight_grad(x, grad, weight, bias, geometry)
    parts = [weight.flatten(1)] + ([bias] if with_bias else [])
    return torch.cat(parts, 1).double().norm(dim=1)


def reach(x, grad, examples, taps, geometry, *, with_bias):
    """Σ |u_t| |g_t|, float64 [examples]."""
    stride, padding, dilation, _ = geometry
    of_x = F.unfold(x.double(), taps, dilation, padding, stride).square().sum(1) + with_bias
    of_grad = grad.double().flatten(2).square().sum(1)
    of_positions = (of_x * of_grad).sqrt()
    return of_positions.view(examples, of_positions.numel() // max(examples, 1)).sum(1)


def as_maps(*tokens):
    """[examples, positions, channels] -> [examples, channels, 1, positions]."""
    return [each.mT[:, :, None] for each in tokens]


def ghosts_of_tokens(x, grad, *, with_bias):
    """`ghost_squares` of a linear layer."""
    return ghost_squares(*as_maps(x, grad), len(x), (1, 1), ONE_TAP, with_bias=with_bias)


def opposite(x, grad):
    """Every other draw takes back what the one before it gives, all but the last bits.

    In float64 their squares are beyond what a sum over pairs can see.
    """
    x, grad = x.clone(), grad.clone()
    rest = 1 + 2.0 ** (-20 if x.dtype == torch.float32 else -28)
    x[1::2], grad[1::2] = x[: len(x) // 2 * 2 : 2], -grad[: len(x) // 2 * 2 : 2] * rest
    return x, grad


def flat(x, grad):
    """A constant image, where all positions read the same but for the borders."""
    return torch.full_like(x, 1 / 3), grad - grad.mean((2, 3), keepdim=True)


KINDS = {
    "random": lambda x, grad: (x, grad),
    "opposite": opposite,
    "flat": flat,
    "zero": lambda x, grad: (x * 0, grad),
    "rectified": lambda x, grad: (x.relu(), grad * (torch.rand_like(grad) < 0.2)),
    "tiny": lambda x, grad: (x * 1e-30, grad * 1e-15),
    "subnormal": lambda x, grad: (x * 1e-40, grad * 1e3),
    "huge": lambda x, grad: (x * 1e30, grad * 1e5),
    "apart": lambda x, grad: (x * 10.0 ** torch.randint(-18, 18, x[:1, :1].shape), grad),
}


def hold(x, grad, examples, taps, geometry, *, with_bias, is_plain=False):
    """The bound is not below the norm of what is added, and above it by what is proven only."""
    call = (x, grad, examples, taps, geometry)
    bound = ghost_squares(*call, with_bias=with_bias).sqrt()
    norms, far = added(*call, with_bias=with_bias), reach(*call, with_bias=with_bias)
    assert (bound >= norms).all()
    positions = len(grad) // max(examples, 1) * grad.shape[2] * grad.shape[3]
    values = x.shape[1] * taps[0] * taps[1] + with_bias + grad.shape[1]
    unit = torch.finfo(x.dtype).eps / 2
    share = 2.01 * (positions + 2) * unit + (2 * values + positions**2 + 9) ** 0.5 * 2.0**-25.9
    assert (bound <= norms + share * far + 1e-30).all()
    if is_plain and x.dtype == torch.float32 and positions * values > 20:
        assert (bound <= norms * (1 + 1e-4)).all()


@given(
    kind=st.sampled_from(list(KINDS)),
    shape=st.sampled_from(list(SHAPES)),
    examples=st.integers(0, 3),
    draws=st.integers(1, 3),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 21),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
@settings(max_examples=120)
def test_the_bound_is_never_below_what_is_added(
    kind, shape, examples, draws, inputs, outputs, with_bias, dtype, seed
):
    torch.manual_seed(seed)
    size, taps, geometry = SHAPES[shape]
    x = torch.randn(examples * draws, inputs, *size, dtype=dtype)
    output = F.conv2d(x, x.new_zeros(outputs, inputs, *taps), None, *geometry)
    x, grad = KINDS[kind](x, torch.randn_like(output))
    hold(x, grad, examples, taps, geometry, with_bias=with_bias, is_plain=kind == "random")


@given(
    positions=st.integers(1, 9),
    inputs=st.integers(1, 37),
    outputs=st.integers(1, 21),
    with_bias=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=40)
def test_the_bound_holds_where_products_cancel(positions, inputs, outputs, with_bias, seed):
    torch.manual_seed(seed)
    x, grad = torch.randn(2, 3 * positions, inputs), torch.randn(2, 3 * positions, outputs)
    x, grad = as_maps(*cancelling(x, grad))
    hold(x, grad, 2, (1, 1), ONE_TAP, with_bias=with_bias)


def test_a_product_of_one_position_is_known_to_rounding():
    x, grad = torch.randn(4, 1, 300), torch.randn(4, 1, 200)
    bound = ghosts_of_tokens(x, grad, with_bias=False).sqrt()
    expected = x[:, 0].double().norm(dim=1) * grad[:, 0].double().norm(dim=1)
    torch.testing.assert_close(bound, expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("shape", ["3x3", "stride"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e25])
def test_what_is_not_finite_or_could_overflow_has_no_norm(shape, value):
    size, taps, geometry = SHAPES[shape]
    x = torch.randn(3, 5, *size)
    grad = torch.randn_like(F.conv2d(x, x.new_zeros(6, 5, *taps), None, *geometry))
    call = {"examples": 3, "taps": taps, "geometry": geometry, "with_bias": True}
    expected = ghost_squares(x, grad, **call)
    x[1, 2, 1, 1], grad[1] = value, 1e25
    bound = ghost_squares(x, grad, **call)
    assert bound.isfinite().tolist() == [True, False, True]
    assert torch.equal(bound[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(("shape", "draws"), [("tokens", 1), ("tokens", 3), ("3x3", 5)])
@pytest.mark.parametrize("channels", [(301, 77), (3, 2)])
def test_an_example_s_bits_depend_on_nothing_else(shape, draws, channels):
    size, taps, geometry = SHAPES[shape]
    x, grad = (torch.randn(5, draws, count, *size) for count in channels)
    strange = torch.tensor([1.0, math.nan, 1e30, 0.0, 2.0]).view(5, 1, 1, 1, 1)
    order, threads = torch.tensor([3, 1, 4, 0, 2]), torch.get_num_threads()

    def found(x, grad):
        rows = x.flatten(0, 1), grad.flatten(0, 1)
        return ghost_squares(*rows, len(x), taps, geometry, with_bias=True)

    expected = found(x, grad)
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert torch.equal(found(x[order], grad[order]), expected[order])
            assert torch.equal(found(x * strange, grad)[:1], expected[:1])
            assert torch.equal(found(x[2:3], grad[2:3]), expected[2:3])
            moved = torch.cat([torch.zeros(1), x[2].flatten()])[1:].view_as(x[2:3])
            assert torch.equal(found(moved, grad[2:3]), expected[2:3])
            last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            assert torch.equal(found(last.unflatten(0, (5, draws)), grad), expected)
    finally:
        torch.set_num_threads(threads)
