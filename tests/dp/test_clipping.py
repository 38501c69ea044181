import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage.dp import GRID_UNITS, clipped_sum

_HOSTILE = [0.0, 1e-30, 1e-3, 1.0, 1e10, 1e30, math.inf, -math.inf, math.nan]
rows = st.lists(st.sampled_from(_HOSTILE), min_size=5, max_size=5).map(torch.tensor)


def _norm(integers):
    return math.sqrt(sum(int(value) ** 2 for value in integers))


@given(row=rows, max_grad_norm=st.sampled_from([1e-3, 1.0, 7.0]), place=st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_one_row_moves_the_sum_by_at_most_the_clip(row, max_grad_norm, place):
    others = torch.randn(6, 5)
    with_row = torch.cat([others[:place], row[None], others[place:]])
    change = clipped_sum(with_row, max_grad_norm) - clipped_sum(others, max_grad_norm)
    assert _norm(change) <= GRID_UNITS
    if not row.isfinite().all():
        assert not change.any()


def test_a_long_gradient_keeps_nearly_the_whole_clip():
    change = clipped_sum(torch.full((1, 10_000), 3.0), 1.0)
    assert GRID_UNITS * (1 - 1e-5) < _norm(change) <= GRID_UNITS


def test_a_short_gradient_is_not_scaled():
    row = torch.tensor([[0.25, -0.5, 0.125]])
    assert torch.equal(clipped_sum(row, 1.0), (row[0] * GRID_UNITS).long())


def test_the_sum_does_not_depend_on_order_or_micro_batches():
    parts = 3 * torch.randn(64, 1000)
    whole = clipped_sum(parts, 1.0)
    assert torch.equal(whole, clipped_sum(parts[torch.randperm(64)], 1.0))
    assert torch.equal(whole, sum(clipped_sum(part, 1.0) for part in parts.split(7)))


def test_cancelling_rows_cannot_hide_one_row():
    # In single precision, a running sum of 4097 rows near +C swallows small rows one way and not
    # the other, so that one row more could move the result by several C.
    large = torch.full((4097, 1), 1.0)
    small = torch.full((4000, 1), -1.2e-4)
    with_row = clipped_sum(torch.cat([large, small]), 1.0)
    without = clipped_sum(torch.cat([large[1:], small]), 1.0)
    assert _norm(with_row - without) <= GRID_UNITS
