"""Group normalisation with SiLU: kernel, reference and float64 autograd, one example at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from privimage import ops
from privimage.ops import reference

# Relative to the largest value: sums of at most some thousand terms in another order.
CLOSE = {torch.float32: 3e-5, torch.float64: 1e-11}


class Plain:
    """The reference behind the operators' signatures."""

    @staticmethod
    def group_norm_silu(x, weight, bias, groups, eps, silu):
        return reference.group_norm_silu(x, weight, bias, groups, eps, silu)

    group_norm_silu_backward = staticmethod(reference.group_norm_silu_backward)


def autograd(x, grad, weight, bias, groups, silu, examples):
    """y, grad of x, weight and bias rows by float64 autograd of each example."""
    pieces = []
    draws = len(x) // examples
    for rows, slope in zip(x.double().split(draws), grad.double().split(draws), strict=True):
        leaves = [t.double().clone().requires_grad_() for t in (rows, weight, bias)]
        y = F.group_norm(leaves[0], groups, *leaves[1:], eps=1e-5)
        y = F.silu(y) if silu else y
        pieces.append((y.detach(), *torch.autograd.grad(y, leaves, slope)))
    y, for_x, for_weight, for_bias = zip(*pieces, strict=True)
    return torch.cat(y), torch.cat(for_x), torch.stack(for_weight), torch.stack(for_bias)


def run(room, x, grad, weight, bias, groups, silu, examples, accumulate=False):
    y, moments = room.group_norm_silu(x, weight, bias, groups, 1e-5, silu)
    rows = torch.full((examples, 2 * x.shape[1] + 1), 1.0 if accumulate else float("nan"))
    rows = rows.to(x.dtype)
    for_weight, for_bias = rows[:, : x.shape[1]], rows[:, x.shape[1] + 1 :]
    for_x = room.group_norm_silu_backward(
        grad, x, moments, weight, bias, for_weight, for_bias, silu, accumulate
    )
    return y, for_x, for_weight - float(accumulate), for_bias - float(accumulate)


@given(
    data=st.data(),
    examples=st.integers(1, 3),
    draws=st.integers(1, 3),
    groups=st.integers(1, 4),
    width=st.integers(1, 9),
    size=st.lists(st.integers(1, 18), max_size=3),
    silu=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_kernel_reference_and_autograd_agree(
    data, examples, draws, groups, width, size, silu, dtype
):
    channels, values = groups * width, width * torch.Size(size).numel()
    if values < 2:
        return  # a variance of one value is 0
    torch.manual_seed(data.draw(st.integers(0, 2**31), "seed"))
    centre = data.draw(st.sampled_from([0, 3]), "centre")
    # Spread evenly and shaken a little: two values that happen to meet would lose all digits.
    even = torch.linspace(-2, 2, values, dtype=dtype).repeat(examples * draws, groups)
    x = centre + (even + 0.3 * torch.randn_like(even)).view(-1, channels, *size)
    grad = torch.randn_like(x)
    weight, bias = torch.randn(2, channels, dtype=dtype)
    if len(size) == 2 and data.draw(st.booleans(), "channels last"):
        x = x.contiguous(memory_format=torch.channels_last)
    if data.draw(st.booleans(), "strided"):
        grad = torch.stack([grad, grad], -1)[..., 0]
    accumulate = data.draw(st.booleans(), "accumulate")
    given = x, grad, weight, bias, groups, silu, examples
    expected = autograd(*given)
    for room in (ops, Plain):
        found = run(room, *given, accumulate)
        for one, other in zip(found, expected, strict=True):
            scale = other.abs().max().clamp(min=1)
            assert (one - other).abs().max() <= CLOSE[dtype] * scale
        assert found[1].stride() == x.stride()


@pytest.mark.parametrize("last", [True, False])
def test_values_far_from_zero_keep_their_precision(last):
    # Single-pass squares would lose all digits of a deviation of 1 beside a mean of 3000.
    x = (3000 + torch.randn(2, 8, 16, 16)).double().float()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y, _ = ops.group_norm_silu(x, None, None, 2, silu=False)
    expected = F.group_norm(x.double(), 2)
    assert (y - expected).abs().max() < 2e-3  # eps * 3000, some times over
    assert (y.double().var(dim=(1, 2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("silu", [True, False])
def test_strides_of_dimensions_of_size_one_do_not_matter(silu):
    x, grad = (torch.randn(5, 4, 6).permute(2, 0, 1)[None] for _ in range(2))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.stride(0) != x.numel()
    weight, bias = torch.randn(2, 6)
    found = run(ops, x, grad, weight, bias, 2, silu, 1)
    expected = autograd(x, grad, weight, bias, 2, silu, 1)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= CLOSE[x.dtype] * other.abs().max()


def test_silu_at_its_ends():
    x = torch.tensor([[-1e4, -90.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 90.0, 1e4, 1.0]]).T.contiguous()
    weight, bias = torch.zeros(1), torch.zeros(1)
    for value in x.flatten().tolist():
        y, _ = ops.group_norm_silu(torch.randn(1, 1, 4), weight, bias + value, 1)
        expected = F.silu(torch.tensor(value, dtype=torch.float64))
        assert (y - expected).abs().max() <= 4e-7 * abs(expected) + 1e-30


@pytest.mark.parametrize(
    ("room", "shape"), [(ops, (0, 4, 3, 3)), (Plain, (0, 4, 3, 3)), (ops, (2, 4, 0, 3))]
)
def test_nothing_to_do(room, shape):
    x, weight = torch.ones(shape), torch.ones(4)
    y, for_x, *rows = run(room, x, x, weight, weight, 2, True, shape[0])
    assert y.shape == for_x.shape == shape
    assert all(row.eq(0).all() for row in rows)


@pytest.mark.parametrize("last", [True, False])
def test_an_example_is_bitwise_the_same_whatever_its_neighbours_and_threads(last):
    x, grad = torch.randn(2, 10, 16, 12, 12)
    order = torch.channels_last if last else torch.contiguous_format
    x = x.contiguous(memory_format=order)
    weight, bias = torch.randn(2, 16)
    expected = run(ops, x, grad, weight, bias, 4, True, 5)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            others = x.clone(memory_format=torch.preserve_format)
            others[4:6] = float("nan")
            found = run(ops, others, grad, weight, bias, 4, True, 5)
            for one, other in zip(found, expected, strict=True):
                rows = len(one) // 5
                kept = [i for i in range(len(one)) if i // rows != 2]
                assert torch.equal(one[kept], other[kept])
            assert found[0][4].isnan().all()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "value", "error", "problem"),
    [
        ("x", torch.ones(4, 6).long(), TypeError, "x: expected a float32"),
        ("x", torch.ones(4), ValueError, "groups: 2 do not fit"),
        ("groups", 4, ValueError, r"groups: 4 do not fit x \[4, 6, 5\]"),
        ("weight", torch.ones(6).double(), TypeError, "weight: expected torch.float32"),
        ("bias", torch.ones(5), ValueError, r"bias: expected \[6\]"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(name, value, error, problem):
    good = {"x": torch.ones(4, 6, 5), "weight": None, "bias": torch.ones(6), "groups": 2}
    ops.group_norm_silu(**good)
    with pytest.raises(error, match=problem):
        ops.group_norm_silu(**(good | {name: value}))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("grad", torch.ones(4, 6, 4), "grad: expected"),
        ("grad_weight", torch.ones(3, 6), "grad_weight: .* does not fit"),
        ("grad_bias", torch.ones(2, 5), "grad_bias: .* does not fit"),
    ],
)
def test_bad_arguments_of_the_backward_pass(name, value, problem):
    x = torch.ones(4, 6, 5)
    _, moments = ops.group_norm_silu(x, None, None, 2)
    good = {"grad": x, "x": x, "moments": moments, "weight": None, "bias": None}
    good |= {"grad_weight": torch.ones(2, 6), "grad_bias": None}
    ops.group_norm_silu_backward(**good)
    with pytest.raises(ValueError, match=problem):
        ops.group_norm_silu_backward(**(good | {name: value}))


@pytest.mark.parametrize("silu", [True, False])
def test_opcheck(silu):
    x, weight = torch.randn(4, 6, 3, 3), torch.ones(6)
    forward = (x, weight, None, 2, 1e-5, silu)
    torch.library.opcheck(torch.ops.privimage.group_norm_silu, forward)
    _, moments = torch.ops.privimage.group_norm_silu(*forward)
    backward = (x, x, moments, weight, None, torch.ones(2, 6), torch.ones(2, 6), silu, False)
    torch.library.opcheck(torch.ops.privimage.group_norm_silu_backward, backward)
