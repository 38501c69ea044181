"""Clipped sums by a plan: what is computed again is what was kept, in less memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from privimage.dp import (
    GRID_UNITS,
    ClipRule,
    ExampleGradients,
    clipped_sum,
    plan,
    planned_clipped_sum,
)
from privimage.dp.costs import Costs
from privimage.errors import UserError
from privimage.ops._library import is_native

COSTS = Costs(multiply_add=5e-12, layer=1e-4)
native = pytest.mark.skipif(not is_native, reason="the native operators are not built")


class Net(nn.Module):
    """Convolutions, a norm, a table, linear layers with and without bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.table = nn.Embedding(5, 12)
        self.hidden = nn.Linear(12, 20, bias=False)
        self.last = nn.Linear(20, 1)

    def forward(self, x, labels):
        h = F.silu(self.norm(self.first(x)))
        h = self.second(h).mean((2, 3)) + self.table(labels)
        return self.last(torch.tanh(self.hidden(h)))


def losses(model, x, labels):
    return model(x, labels).square().sum(1)


def batch(examples, draws):
    rows = examples * draws
    return torch.randn(rows, 3, 7, 6), torch.randint(0, 5, (rows,))


def planned(model, draws=1, **options):
    return plan(model, batch(1, draws), draws=draws, losses=losses, costs=COSTS, **options)


@native
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("examples", [0, 1, 5])
@pytest.mark.parametrize("choice", ["keep", "recompute"])
def test_the_sum_is_that_of_the_gradients(draws, examples, choice):
    model, data = Net(), batch(examples, draws)
    gradients = ExampleGradients(model)
    chosen = planned(model, draws).choosing("", choice)
    assert len(chosen.recomputed) == (0 if choice == "keep" else 6)
    found = planned_clipped_sum(gradients, losses, *data, plan=chosen, rule=ClipRule(0.5))
    expected = clipped_sum(gradients(losses, *data, draws=draws), 0.5)
    # Norms are added up in another order: a scale's last bit can move a coordinate by a step.
    assert (found - expected).abs().max() <= examples


@native
def test_micro_batches_change_the_sum_no_more_than_the_forward_pass():
    model, data = Net(), batch(7, 2)
    gradients = ExampleGradients(model)
    expected = clipped_sum(gradients(losses, *data, draws=2), 0.5)
    chosen = planned(model, 2, examples=3).choosing("", "recompute")
    found = planned_clipped_sum(gradients, losses, *data, plan=chosen, rule=ClipRule(0.5))
    assert (found - expected).abs().max() <= 1e-5 * GRID_UNITS
    assert found.abs().max() > 1e-2 * GRID_UNITS


@native
@pytest.mark.parametrize("value", [1.0, 1e20, float("inf"), float("nan")])
def test_one_example_moves_the_sum_by_at_most_the_clip(value):
    model = Net()
    gradients = ExampleGradients(model)
    chosen = planned(model).choosing("", "recompute").choosing("second", "keep")
    x, labels = batch(4, 1)
    x[3] *= value

    def total(count):
        data = x[:count], labels[:count]
        return planned_clipped_sum(gradients, losses, *data, plan=chosen, rule=ClipRule(0.1))

    # The others alone are computed in another batch shape.
    moved = (total(4) - total(3)).double().norm()
    assert moved <= GRID_UNITS * (1 + 1e-5)
    if value == 1.0:
        assert moved > 0.9 * GRID_UNITS
    else:
        assert value == 1e20 or moved <= 1e-5 * GRID_UNITS


def test_scales_are_those_of_the_grid():
    values = [0.0, 0.25, 1.0, 2.0, 1e300, float("inf"), float("nan")]
    squares = torch.tensor(values, dtype=torch.float64)
    found = clip_scales(squares, 1.0)
    assert found[-2:].tolist() == [0, 0]
    assert found[0] == GRID_UNITS
    norms = (squares[:-2].sqrt() * found[:-2])[2:]
    assert (norms < GRID_UNITS).all()
    assert (norms > GRID_UNITS * (1 - 2.0**-19)).all()
    assert found[1] == GRID_UNITS


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def test_what_is_used_twice_is_kept():
    found = plan(Tied(), [4], costs=COSTS)
    assert [layer.choice for layer in found.layers] == ["keep", "keep"]
    assert "used more than once" in str(found)
    with pytest.raises(UserError, match=r"'layer.weight' must be kept: used more than once"):
        found.choosing("layer", "recompute")


@native
def test_another_use_than_the_planned_one_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    chosen = plan(model, [4], costs=COSTS).choosing("0", "recompute")

    def twice(model, x):
        return model(model(x)).sum(1)

    with pytest.raises(UserError, match=r"'0.weight' is not used as .* plan.choosing"):
        planned_clipped_sum(
            ExampleGradients(model), twice, torch.ones(2, 4), plan=chosen, rule=ClipRule(1.0)
        )


@native
def test_few_positions_are_computed_again_and_many_are_kept():
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(16, 64)
    )
    found = plan(model, [16, 8, 8], draws=8, costs=COSTS)
    assert {layer.weight: layer.choice for layer in found.layers} == {
        "0.weight": "keep",
        "3.weight": "recompute",
    }
    assert found.recomputed == {"3.weight", "3.bias"}
    assert "64x16" in str(found)
    assert "keep takes" in str(found)


@native
def test_less_memory_means_smaller_micro_batches_down_to_one_example():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    free = plan(model, [64], costs=Costs(1e-9, 1e-12, 1e-9, 1e-5))
    assert {layer.choice for layer in free.layers} == {"keep"}
    kept = 4 * (64 * 256 + 2560)
    assert free.bytes_an_example >= kept
    tight = plan(
        model, [64], costs=Costs(1e-9, 1e-12, 1e-9, 1e-5), max_memory=3.5 * free.bytes_an_example
    )
    assert tight.examples == 3
    least = plan(model, [64], costs=Costs(1e-9, 1e-12, 1e-9, 1e-5), max_memory=kept / 2)
    assert least.examples >= 1
    assert {layer.choice for layer in least.layers} == {"recompute"}
    with pytest.raises(UserError, match=r"one example takes .* more than the 0\.0 of max_memory"):
        plan(model, [64], costs=COSTS, max_memory=10.0)


def test_bad_arguments_are_refused_in_a_sentence():
    model = nn.Sequential(nn.Linear(4, 4))
    found = plan(model, [4], costs=COSTS)
    with pytest.raises(UserError, match="no planned layer 'other'"):
        found.choosing("other", "keep")
    with pytest.raises(UserError, match="max_grad_norm must be in"):
        planned_clipped_sum(
            ExampleGradients(model), losses, torch.ones(2, 4), plan=found, rule=ClipRule(0.0)
        )
