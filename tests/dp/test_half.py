"""bfloat16 as on a GPU: the operators get it as it is, with the reference in the kernels' place."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from privimage.dp import (
    DPSGD,
    GRID_UNITS,
    ClipRule,
    ExampleGradients,
    Privacy,
    PrivateEngine,
    clipped_sum,
    plan,
    planned_clipped_sum,
)
from privimage.dp.gradients.costs import Costs
from privimage.errors import UserError
from privimage.ops import layers, reference

OPERATORS = [
    "example_weight_grad",
    "measured_weight_grads",
    "example_weight_norms",
    "recomputed_sum",
    "example_embedding_grad",
    "group_norm_silu",
    "group_norm_silu_backward",
]


class Small(nn.Module):
    """A layer of every kind that has an operator of its own."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(3, 4)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x, labels):
        hidden = self.norm(self.first(x) + self.label(labels)[..., None, None])
        return self.last(nn.functional.silu(hidden).mean((2, 3)))


def losses(model, x, labels):
    return model(x, labels).square().sum(1)


@pytest.fixture
def seen(monkeypatch):
    """The types of activations that each operator was given."""
    types = {}

    def watched(name):
        operator = getattr(reference, name)

        def call(*arguments):
            given = [tree_leaves(each)[0] for each in arguments[:2]]
            first = [t.dtype for t in given if t is not None and t.is_floating_point()]
            if "weight" in name or name == "recomputed_sum":  # As their fast kernels want them.
                assert all(t.is_contiguous(memory_format=torch.channels_last) for t in given)
            types.setdefault(name, set()).update(first[: 1 if name == "group_norm_silu" else 2])
            return operator(*arguments)

        call.default = call
        return call

    monkeypatch.setattr(layers, "_has_half", lambda x: True)
    for name in OPERATORS:
        monkeypatch.setattr(torch.ops.privimage, name, watched(name))
    return types


@pytest.mark.parametrize("recompute", [False, True])
def test_it_stays_so_up_to_the_operators(seen, recompute):
    torch.manual_seed(0)
    model = Small()
    x, labels = torch.randn(6, 2, 5, 5), torch.tensor([0, 1, 2, 2, 2, 1])
    gradients = ExampleGradients(model)
    expected = clipped_sum(gradients(losses, x, labels, draws=2), 1.0)
    model.to(torch.bfloat16)
    half = x.bfloat16()
    chosen = plan(
        model,
        (half[:2], labels[:2]),
        draws=2,
        examples=3,
        losses=losses,
        costs=Costs(1, 1, 1, 1, 1, 1, 1),
    )
    seen.clear()
    for name in ("first.weight", "last.weight"):
        chosen = chosen.choosing(name, "recompute" if recompute else "keep")
    found = planned_clipped_sum(gradients, losses, half, labels, plan=chosen, rule=ClipRule(1.0))
    twice = {"example_weight_norms", "recomputed_sum"}
    once = {"measured_weight_grads", "example_weight_grad"}
    assert set(seen) == set(OPERATORS) - (once if recompute else twice)
    assert set.union(*seen.values()) == {torch.bfloat16}, seen
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


def autocast_losses(model, x, labels):
    with torch.autocast("cpu", torch.bfloat16):
        return losses(model, x, labels).float()


def test_autocast_reaches_the_operators(seen):
    torch.manual_seed(0)
    gradients = ExampleGradients(Small())
    x, labels = torch.randn(6, 2, 5, 5), torch.tensor([0, 1, 2, 2, 2, 1])
    expected = gradients(losses, x, labels, draws=2)
    seen.clear()
    found = gradients(autocast_losses, x, labels, draws=2)
    assert seen["example_weight_grad"] == {torch.bfloat16}
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


def test_autocast_changes_no_example_on_the_cpu_but_by_rounding():
    torch.manual_seed(0)
    model = Small()
    gradients = ExampleGradients(model)
    x, labels = torch.randn(4, 2, 5, 5), torch.tensor([0, 1, 2, 2])
    found = gradients(autocast_losses, x, labels)
    for i, row in enumerate(found):
        loss = autocast_losses(model, x[i : i + 1], labels[i : i + 1]).sum()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.cat([part.flatten() for part in parts])
        assert (row - expected).abs().max() <= 0.02 * expected.abs().max()


def in_rows(model, x, labels, rows_dtype):
    return plan(
        model,
        (x[:2], labels[:2]),
        draws=2,
        examples=3,
        losses=losses,
        costs=Costs(1, 1, 1, 1, 1, 1, 1),
        rows_dtype=rows_dtype,
    )


@pytest.mark.parametrize("way", ["flat", "per_layer"])
def test_rows_in_half_are_added_as_they_were_measured(seen, monkeypatch, way):
    for name in ("squared_norms", "scaled_sum"):
        monkeypatch.setattr(torch.ops.privimage, name, getattr(reference, name))
    torch.manual_seed(0)
    model, rule = Small(), ClipRule(0.1, way)
    x, labels = torch.randn(6, 2, 5, 5), torch.tensor([0, 1, 2, 2, 2, 1])
    gradients = ExampleGradients(model)
    chosen = in_rows(model, x, labels, torch.bfloat16)
    found = planned_clipped_sum(gradients, losses, x, labels, plan=chosen, rule=rule)
    rows = gradients(losses, x, labels, draws=2)
    as_kept, as_computed = (
        rule.sum(each, gradients.module_sizes) for each in (rows.bfloat16().float(), rows)
    )
    # Norms are rounded up to 24 bits, and coordinates towards zero.
    assert (found - as_kept).abs().max() <= 3 * (2 + 2.0**-23 * GRID_UNITS)
    assert (found - as_computed).abs().max() > 2.0**-12 * GRID_UNITS
    wide = in_rows(model, x, labels, None)
    assert chosen.bytes_fixed == wide.bytes_fixed
    assert chosen.bytes_an_example < wide.bytes_an_example
    assert {layer.bytes["keep"] for layer in chosen.layers} == {
        layer.bytes["keep"] / 2 for layer in wide.layers
    }


def test_rows_in_half_are_refused_on_a_cpu():
    x, labels = torch.randn(6, 2, 5, 5), torch.tensor([0, 1, 2, 2, 2, 1])
    with pytest.raises(UserError, match=r"rows_dtype: .* on cpu can't be kept in torch.bfloat16"):
        in_rows(Small(), x, labels, torch.bfloat16)
    model = nn.Sequential(nn.Linear(4, 2))
    engine = PrivateEngine(
        model,
        DPSGD(model.parameters(), 0.1),
        lambda model, x: model(x).sum(1),
        torch.ones(4, 4),
        Privacy(noise_multiplier=1.0, sample_rate=0.5, steps=2, max_grad_norm=1.0),
    )
    engine.rows_dtype = torch.float16
    with pytest.raises(UserError, match=r"rows_dtype: .* can't be kept in torch.float16"):
        engine.step()
    assert engine.steps_spent == 0
