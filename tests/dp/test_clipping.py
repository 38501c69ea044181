import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage.dp import GRID_UNITS, ClipRule, clipped_sum

_CLIPS = [1e-30, 1e-3, 1.0, 7.0, 1e30]
_TINY = 2.0**-149
_HOSTILE = [
    0.0, -0.0, _TINY, -_TINY, 1e-38, 1e-30, 1e-3, 1.0, -1.0, 1e10, -1e10, 1e30, -1e30, 3.4e38,
    math.inf, -math.inf, math.nan,
]  # fmt: skip
rows = st.lists(st.sampled_from(_HOSTILE), min_size=1, max_size=40).map(torch.tensor)


def _norm(integers):
    return math.sqrt(sum(int(value) ** 2 for value in integers))


def _layers(parts, max_grad_norm, layers=3):
    """As many layers, of unequal sizes and some of them empty, each by itself."""
    ends = [0, *(parts.shape[1] * i * i // layers**2 for i in range(1, layers + 1))]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    return _by_layer(parts, max_grad_norm, sizes)


def _by_layer(parts, max_grad_norm, sizes):
    return ClipRule(max_grad_norm, "per_layer").sum(parts, sizes)


def _normalised(parts, max_grad_norm, stability=0.01):
    return ClipRule(max_grad_norm, "automatic", stability).sum(parts, [])


SUMS = [
    clipped_sum,
    _normalised,
    partial(_normalised, stability=1e-30),
    partial(_normalised, stability=1e30),
    *(partial(_layers, layers=count) for count in (1, 2, 3, 7)),
]


@given(
    row=rows,
    double=st.booleans(),
    max_grad_norm=st.sampled_from(_CLIPS),
    place=st.integers(0, 6),
    sum_=st.sampled_from(SUMS),
)
@settings(max_examples=600)
def test_one_row_moves_the_sum_by_at_most_the_clip(row, double, max_grad_norm, place, sum_):
    row = row.double() if double else row
    others = (torch.randn(6, len(row)) * max_grad_norm).to(row.dtype)
    with_row = torch.cat([others[:place], row[None], others[place:]])
    change = sum_(with_row, max_grad_norm) - sum_(others, max_grad_norm)
    assert sum(int(value) ** 2 for value in change) <= GRID_UNITS**2
    if not row.isfinite().all():
        by_layer = getattr(sum_, "func", None) is _layers
        assert not change[~row.isfinite() if by_layer else slice(None)].any()


def test_layers_are_scaled_each_by_itself():
    row = torch.tensor([[3.0, 4.0, 0.1, -0.2, 12.0]])
    found = _by_layer(row, 1.0, [2, 2, 1]).double() / GRID_UNITS
    root = 3**-0.5
    expected = torch.tensor([0.6 * root, 0.8 * root, 0.1, -0.2, root]).double()
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-8)
    # The layers use the whole clip together, where all of them are long.
    assert _norm(_by_layer(100 * row, 1.0, [2, 2, 1])) > GRID_UNITS * (1 - 1e-5)
    broken = row.clone()
    broken[0, 0] = math.nan
    without = _by_layer(broken, 1.0, [2, 2, 1])
    assert without.tolist()[:2] == [0, 0]
    assert torch.equal(without[2:], _by_layer(row, 1.0, [2, 2, 1])[2:])


@pytest.mark.parametrize("size", [1e-4, 0.01, 1.0, 1e4])
def test_normalising_is_the_formula_of_the_paper(size):
    row = size * torch.tensor([[0.6, -0.8]])
    found = _normalised(row, 2.0, stability=0.01).double() * 2.0 / GRID_UNITS
    expected = 2.0 * row[0].double() / (size + 0.01)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-8)


def test_nothing_to_add_is_zero():
    for sum_ in SUMS:
        assert sum_(torch.empty(0, 5), 1.0).tolist() == [0] * 5


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1025])
def test_a_row_that_is_not_finite_adds_nothing_wherever_it_breaks(poison, size):
    parts = torch.randn(3, size)
    expected = clipped_sum(parts[[0, 2]], 1.0)
    for place in range(size) if size < 20 else (0, 16, 1023, 1024):
        broken = parts.clone()
        broken[1, place] = poison
        assert torch.equal(clipped_sum(broken, 1.0), expected)


def test_a_row_whose_squares_overflow_float64_adds_nothing():
    parts = torch.tensor([[1e200, 1.0], [0.5, 0.25]], dtype=torch.float64)
    assert torch.equal(clipped_sum(parts, 1.0), clipped_sum(parts[1:], 1.0))


def test_a_row_longer_than_any_float32_values_adds_nothing():
    parts = torch.tensor([[1e47, 1.0], [0.5, 0.25]], dtype=torch.float64)
    assert torch.equal(clipped_sum(parts, 1.0), clipped_sum(parts[1:], 1.0))
    assert clipped_sum(parts.sign() * 1e45, 1.0).any()


def test_a_row_whose_squares_underflow_is_kept_as_it_is():
    parts = torch.tensor([[1e-200, 0.0]], dtype=torch.float64)
    assert not clipped_sum(parts, 1.0).any()
    small = torch.tensor([[1e-29, _TINY]])
    large, nothing = clipped_sum(small, 1e-29).tolist()
    assert nothing == 0
    assert large == pytest.approx(GRID_UNITS * (1 - 2**-20), rel=2**-22)


@given(
    scale=st.sampled_from([1e-4, 1e-3, 1.0, 1e3, 1e30]),
    max_grad_norm=st.sampled_from([1e-3, 1.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50)
def test_order_micro_batches_and_shards_change_no_bit(scale, max_grad_norm, seed):
    random = torch.Generator().manual_seed(seed)
    parts = scale * torch.randn(23, 137, generator=random)
    parts[5, 7] = math.nan
    whole = clipped_sum(parts, max_grad_norm)
    order = torch.randperm(23, generator=random)
    assert torch.equal(whole, clipped_sum(parts[order], max_grad_norm))
    size = int(torch.randint(1, 24, (), generator=random))
    assert torch.equal(whole, sum(clipped_sum(part, max_grad_norm) for part in parts.split(size)))
    # The same values in another order in memory.
    assert torch.equal(clipped_sum(parts.T.contiguous().T, max_grad_norm), whole)


def test_a_long_gradient_keeps_nearly_the_whole_clip():
    change = clipped_sum(torch.full((1, 10_000), 3.0), 1.0)
    assert GRID_UNITS * (1 - 1e-5) < _norm(change) <= GRID_UNITS


def test_a_short_gradient_is_not_scaled():
    row = torch.tensor([[0.25, -0.5, 0.125]])
    assert torch.equal(clipped_sum(row, 1.0), (row[0] * GRID_UNITS).long())


def test_cancelling_rows_cannot_hide_one_row():
    # In single precision, a running sum of 4097 rows near +C swallows small rows one way and not
    # the other, so that one row more could move the result by several C.
    large = torch.full((4097, 1), 1.0)
    small = torch.full((4000, 1), -1.2e-4)
    with_row = clipped_sum(torch.cat([large, small]), 1.0)
    without = clipped_sum(torch.cat([large[1:], small]), 1.0)
    assert _norm(with_row - without) <= GRID_UNITS


def test_scales_are_those_of_the_grid():
    values = [0.0, 0.25, 1.0, 2.0, 1e80, float("inf"), float("nan")]
    squares = torch.tensor([values], dtype=torch.float64)
    (found,) = ClipRule(1.0).scales(squares)
    assert found[-2:].tolist() == [0, 0]
    assert found[0] == GRID_UNITS
    norms = (squares[0, :-2].sqrt() * found[:-2])[2:]
    assert (norms < GRID_UNITS).all()
    assert (norms > GRID_UNITS * (1 - 2.0**-19)).all()
    assert found[1] == GRID_UNITS
    (layers,) = ClipRule(1.0, "per_layer").scales(squares[:, 4:5].expand(4, 1)).T
    assert (layers * 1e40 < GRID_UNITS / 2).all()
    (normalised,) = ClipRule(1.0, "automatic", 0.5).scales(squares[:, 1:2])
    assert 0 < GRID_UNITS / 1.0 - normalised.item() < 2e-6 * GRID_UNITS


def test_norms_that_differ_in_the_last_places_get_one_scale():
    """The order in which squares are added up can change no coordinate."""
    squares = torch.rand(1, 1000, dtype=torch.float64) + 1
    other = squares * (1 + 2.0**-50)
    assert not torch.equal(squares, other)
    assert torch.equal(ClipRule(0.5).scales(squares), ClipRule(0.5).scales(other))
    assert not torch.equal(
        ClipRule(0.5).scales(squares), ClipRule(0.5).scales(squares * (1 + 1e-6))
    )
