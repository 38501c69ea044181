"""The clipped sum: native code, reference and the definition in exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage import ops
from privimage.ops import reference

UNITS = 2**ops.GRID_BITS
HOSTILE = [0.0, 1e-30, -1e-30, 1e-3, 1.0, 1e10, -1e30, math.inf, -math.inf, math.nan]
SHAPES = [
    (1, 1),
    (2, 15),
    (3, 16),
    (5, 17),
    (7, 1023),
    (4, 1024),
    (9, 1025),
    (65, 3001),
    (2, 70001),
]


def _random(shape, dtype=torch.float32, scale=1.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, dtype=dtype, generator=random)


def _by_reference(parts, clip, share=1.0, stability=None):
    norms = parts.double().square().sum(dim=1).sqrt()
    total = torch.empty(parts.shape[1], dtype=torch.int64)
    scales = reference.grid_scales(norms, clip, share, stability)
    reference.scaled_sum(parts, scales, total, accumulate=False)
    return total


def _exact(parts, clip, margin=Fraction(1, 2**20), share=1.0, stability=None):
    """The definition: each row scaled to a norm of at most C, towards zero onto the grid.

    Returns the sum, and by how much a coordinate of it may be off: scales, and products of float32
    values, have 24 bits.
    """
    total, room = [0] * parts.shape[1], [0.0] * parts.shape[1]
    for row in parts.tolist():
        if not all(map(math.isfinite, row)):
            continue
        squares = sum(Fraction(value) ** 2 for value in row)
        if squares > Fraction(1.7976931348623157e308):
            continue
        # With 200 bits after the point the square root is as good as exact.
        norm = Fraction(math.isqrt(int(squares * 4**200)), 2**200)
        allowed = Fraction(clip) * Fraction(share) * (1 - margin)
        factor = allowed / norm if norm > allowed else 1
        if stability is not None:
            factor = allowed / (norm + Fraction(stability))
        scale = Fraction(UNITS) / Fraction(clip) * factor
        scale = min(scale, Fraction(torch.finfo(torch.float32).max))
        steps = [Fraction(value) * scale for value in row]
        total = [sum_ + int(each) for sum_, each in zip(total, steps, strict=True)]
        room = [sum_ + 1 + abs(each) / 2**22 for sum_, each in zip(room, steps, strict=True)]
    return torch.tensor(total, dtype=torch.int64), torch.tensor([float(each) for each in room])


def _is_near(found, exact):
    expected, room = exact
    assert found.dtype == torch.int64
    return bool(((found - expected).abs() <= room).all())


def _largest_difference(first, second):
    assert first.dtype == second.dtype == torch.int64
    assert first.shape == second.shape
    return int((first - second).abs().max()) if first.numel() else 0


# Where the norms of two orders of summation differ in their last bits, scales may differ in the
# last of 24: by a few steps for each example.
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e4])
def test_native_and_reference_agree(shape, dtype, clip):
    parts = _random(shape, dtype)
    found = ops.clipped_sum(parts, clip)
    steps = UNITS * 2.0**-23 + 1
    assert _largest_difference(found, _by_reference(parts, clip)) <= steps * shape[0]


@pytest.mark.parametrize("shape", SHAPES[:-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [0.7, 1e4])
def test_both_are_the_definition_in_exact_arithmetic(shape, dtype, clip):
    parts = _random(shape, dtype)
    expected = _exact(parts, clip)
    # The same comparison notices another margin where rows are clipped, another norm where not.
    wrong = _exact(parts, clip, Fraction(1, 2**19)) if clip < 1 else _exact(parts, clip * 1.001)
    for function in (ops.clipped_sum, _by_reference):
        assert _is_near(function(parts, clip), expected)
        assert not _is_near(function(parts, clip), wrong)


@pytest.mark.parametrize(
    ("share", "stability"), [(3**-0.5, None), (1.0, 0.01), (0.5, 100.0), (1e-3, None)]
)
@pytest.mark.parametrize("shape", SHAPES[:-3])
def test_shares_and_normalising_are_the_definition_too(shape, share, stability):
    parts = _random(shape)
    expected = _exact(parts, 0.7, share=share, stability=stability)
    wrong = _exact(parts, 0.7, share=share * 1.001, stability=stability)
    for function in (ops.clipped_sum, _by_reference):
        found = function(parts, 0.7, share, stability)
        assert _is_near(found, expected)
        if UNITS * share > 1e7:
            assert not _is_near(found, wrong)


@given(
    row=st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=19),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    clip=st.sampled_from([1e-30, 1e-3, 1.0, 7.0, 1e30]),
    share=st.sampled_from([1.0, 7**-0.5, 1e-30]),
    stability=st.sampled_from([None, 1e-30, 0.01, 1e30]),
)
@settings(max_examples=300)
def test_hostile_values_are_treated_as_the_definition_says(row, dtype, clip, share, stability):
    parts = torch.tensor([row], dtype=dtype)
    expected = _exact(parts, clip, share=share, stability=stability)
    for function in (ops.clipped_sum, _by_reference):
        found = function(parts, clip, share, stability)
        assert _is_near(found, expected)
        assert sum(int(value) ** 2 for value in found) <= Fraction(share * UNITS) ** 2
        if not parts.isfinite().all():
            assert not found.any()


def test_squares_that_overflow_count_as_not_finite():
    parts = torch.tensor([[1e200, 1.0], [0.5, -0.5]], dtype=torch.float64)
    for function in (ops.clipped_sum, _by_reference):
        assert torch.equal(function(parts, 1.0), torch.tensor([UNITS // 2, -UNITS // 2]))


def test_squares_that_underflow_need_no_clipping():
    parts = torch.full((1, 3), 1e-200, dtype=torch.float64)
    for function in (ops.clipped_sum, _by_reference):
        assert not function(parts, 1.0).any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 15, 16, 1000, 1036])
def test_a_poisoned_row_leaves_the_others_bitwise_as_they_are(poison, position):
    parts = _random((6, 1037))
    poisoned = parts.clone()
    poisoned[2, position] = poison
    without = torch.cat([parts[:2], parts[3:]])
    for function in (ops.clipped_sum, _by_reference):
        assert torch.equal(function(poisoned, 1.0), function(without, 1.0))
        assert not torch.equal(function(parts, 1.0), function(without, 1.0))


def test_a_row_is_worth_the_same_among_any_others():
    parts = _random((9, 1037))
    alone = [ops.clipped_sum(row[None], 1.0) for row in parts]
    assert torch.equal(ops.clipped_sum(parts, 1.0), sum(alone))
    assert torch.equal(ops.clipped_sum(parts.flip(0), 1.0), sum(alone))


def test_layouts_that_are_not_contiguous_change_nothing():
    parts = _random((12, 300))
    expected = ops.clipped_sum(parts, 1.0)
    wide = torch.full((12, 600), math.nan)
    wide[:, ::2] = parts
    tall = torch.full((24, 300), math.nan)
    tall[1::2] = parts
    layouts = [parts.t().contiguous().t(), wide[:, ::2], tall[1::2], parts.flip(1).flip(1)]
    for layout in layouts:
        assert torch.equal(ops.clipped_sum(layout, 1.0), expected)
    wide[:, 300:] = parts
    assert torch.equal(ops.clipped_sum(wide[:, 300:], 1.0), expected)
    repeated = parts[:1].expand(5, -1)
    assert torch.equal(ops.clipped_sum(repeated, 1.0), 5 * ops.clipped_sum(parts[:1], 1.0))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_nothing_to_add_is_zero(shape):
    found = ops.clipped_sum(torch.empty(shape), 1.0)
    assert found.shape == shape[1:]
    assert not found.any()


def test_threads_change_nothing():
    parts = _random((64, 20_011))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.clipped_sum(parts, 1.0)
        torch.set_num_threads(3)
        assert torch.equal(ops.clipped_sum(parts, 1.0), alone)
    finally:
        torch.set_num_threads(before)


def test_the_result_has_no_gradient():
    parts = _random((3, 4)).requires_grad_()
    assert not ops.clipped_sum(parts, 1.0).requires_grad


@pytest.mark.parametrize(
    ("parts", "max_grad_norm", "error", "sentence"),
    [
        ([[1.0]], 1.0, TypeError, "parts: expected a float32 or float64 tensor, got list"),
        (torch.ones(2, 2).half(), 1.0, TypeError, r"parts: expected .*, got torch\.float16"),
        (torch.ones(2, 2).long(), 1.0, TypeError, r"parts: expected .*, got torch\.int64"),
        (torch.ones(2), 1.0, ValueError, r"parts: expected \[examples, .*, got shape \[2\]"),
        (torch.ones(2, 2, 2), 1.0, ValueError, r"parts: expected .*, got shape \[2, 2, 2\]"),
        (torch.ones(2, device="meta"), 1.0, ValueError, r"parts: expected .*, got shape \[2\]"),
        (torch.ones(2, 2), "1", TypeError, "max_grad_norm: expected a number, got str"),
        (torch.ones(2, 2), True, TypeError, "max_grad_norm: expected a number, got bool"),
        (torch.ones(2, 2), 0.0, ValueError, r"max_grad_norm: expected .*, got 0\.0"),
        (torch.ones(2, 2), -1.0, ValueError, r"max_grad_norm: expected .*, got -1\.0"),
        (torch.ones(2, 2), 1e31, ValueError, r"max_grad_norm: expected .*, got 1e\+31"),
        (torch.ones(2, 2), math.inf, ValueError, "max_grad_norm: expected .*, got inf"),
        (torch.ones(2, 2), math.nan, ValueError, "max_grad_norm: expected .*, got nan"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_expected_and_what_came(
    parts, max_grad_norm, error, sentence
):
    with pytest.raises(error, match=sentence):
        ops.clipped_sum(parts, max_grad_norm)


@pytest.mark.parametrize(
    ("others", "error", "sentence"),
    [
        ({"share": 0.0}, ValueError, r"share: expected a number in \[1e-30, 1\], got 0\.0"),
        ({"share": 1.01}, ValueError, "share: expected .*, got 1.01"),
        ({"share": None}, TypeError, "share: expected a number, got NoneType"),
        ({"stability": 0.0}, ValueError, r"stability: expected .*, got 0\.0"),
        ({"stability": math.nan}, ValueError, "stability: expected .*, got nan"),
        ({"stability": "1"}, TypeError, "stability: expected a number, got str"),
    ],
)
def test_a_bad_share_or_stability_is_named(others, error, sentence):
    with pytest.raises(error, match=sentence):
        ops.clipped_sum(torch.ones(2, 2), 1.0, **others)
