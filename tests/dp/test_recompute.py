"""Clipped sums by a plan: what is computed again is what was kept, in less memory."""

import gc
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from privimage.acceleration import memory_format, mixed_precision
from privimage.dp import (
    GRID_UNITS,
    ClipRule,
    ExampleGradients,
    clipped_sum,
    plan,
    planned_clipped_sum,
    record,
)
from privimage.dp.gradients.costs import Costs
from privimage.dp.gradients.kept import Arena
from privimage.errors import UserError
from privimage.ops._library import is_native

COSTS = Costs(
    multiply_add=5e-12, keep=6e-10, norm=2e-10, sum=2e-10, outer=2.05e-10, gram=2e-11, layer=1e-4
)
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)
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


@contextmanager
def marked_memory():
    """Inside, new memory holds the largest number."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


RULES = [ClipRule(0.5), ClipRule(0.5, "per_layer"), ClipRule(0.5, "automatic")]


def total(model, data, chosen, rule=RULES[0], **options):
    return planned_clipped_sum(
        ExampleGradients(model), losses, *data, plan=chosen, rule=rule, **options
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.clipping)
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("examples", [0, 1, 5])
def test_the_sum_is_that_of_the_gradients(draws, examples, rule):
    model, data = Net(), batch(examples, draws)
    gradients = ExampleGradients(model)
    found = total(model, data, planned(model, draws), rule)
    expected = rule.sum(gradients(losses, *data, draws=draws), gradients.module_sizes)
    # Norms are rounded up to 24 bits, and coordinates towards zero.
    assert (found - expected).abs().max() <= max(examples, 1) * (2 + 2.0**-23 * GRID_UNITS)
    assert (found.abs().max() > 1e-2 * GRID_UNITS) == (examples > 0)


def in_half(model, x, labels):
    """On a GPU in bfloat16, channels last."""
    with mixed_precision(x.device):
        return losses(model, memory_format(x), labels).float()


@pytest.fixture
def _repeatable():
    """Else cuDNN may add gradients of activations up in any order."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        yield


@native
@pytest.mark.usefixtures("_repeatable")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.clipping)
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_choice_changes_no_bit(device, draws, rule):
    model, data = Net().to(device), [tensor.to(device) for tensor in batch(5, draws)]
    one = [tensor[:draws] for tensor in data]
    kept = plan(model, one, draws=draws, losses=in_half, costs=COSTS)
    gradients = ExampleGradients(model)

    def total(model, data, chosen, rule):
        return planned_clipped_sum(gradients, in_half, *data, plan=chosen, rule=rule)

    assert not kept.recomputed
    expected = total(model, data, kept, rule)
    again = kept.choosing("", "recompute")
    assert len(again.recomputed) == 7
    names = [layer.weight for layer in again.layers]
    for chosen in (again, *(again.choosing(name, "keep") for name in names)):
        assert torch.equal(total(model, data, chosen, rule), expected)


class Products(nn.Module):
    """Matrices without a layer, as GPT-2 has them, and one that stands before the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bias = nn.Parameter(torch.randn(20))
        self.wide, self.narrow = nn.Parameter(torch.randn(6, 20)), nn.Parameter(torch.randn(20, 3))
        self.before = nn.Parameter(torch.randn(2, 21))

    def forward(self, x, labels):
        h = torch.addmm(self.bias, x.view(-1, 6), self.wide).tanh().view(len(x), 21, 20)
        return (self.before @ (h @ self.narrow)).flatten(1) + labels[:, None]


@native
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.clipping)
def test_products_with_matrices_are_planned_as_layers(draws, rule):
    model, data = Products(), batch(5, draws)
    kept = planned(model, draws)
    assert [layer.weight for layer in kept.layers] == ["wide", "narrow", "before"]
    sums = [
        total(model, data, kept.choosing("", choice), rule)
        for choice in ("keep", "recompute", "ghost")
    ]
    assert torch.equal(sums[0], sums[1])
    expected = clipped_sum(ExampleGradients(model)(losses, *data, draws=draws), 0.5)
    if rule.clipping == "flat":
        assert (sums[0] - expected).abs().max() <= 1e-5 * GRID_UNITS
    # A ghost's norm is a bound, some roundings of float32 products above the norm.
    assert (sums[2] - sums[0]).abs().max() <= 3e-5 * GRID_UNITS


class Changing(nn.Module):
    """Overwrites what it computes from parameters, and data by them; a bias is computed, too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale, self.token = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x, labels):
        scale = 2 * self.scale
        h = self.first(x.view(len(x), 21, 6)) + scale
        scale.clamp_(max=1).mul_(self.token)
        h[h[..., 0] > 0] = self.token
        h[:, 0] = scale
        shift = torch.zeros(3)
        shift[1:] = self.last.bias[1:]
        return F.linear(h.sin(), self.last.weight, shift).flatten(1) + labels[:, None]


@native
def test_what_is_changed_in_place_is_planned_and_recorded():
    model, data = Changing(), batch(7, 2)
    expected = clipped_sum(ExampleGradients(model)(losses, *data, draws=2), 0.5)
    assert expected.abs().max() > 1e-2 * GRID_UNITS
    chosen = planned(model, 2, examples=3)
    assert [layer.weight for layer in chosen.layers] == ["first.weight"]
    for choice in ("keep", "recompute", "ghost"):
        chosen = chosen.choosing("", choice)
        found = total(model, data, chosen)
        assert (found - expected).abs().max() <= 3e-5 * GRID_UNITS
        recorded = record(lambda *data, plan=chosen: total(model, data, plan), *batch(7, 2))
        assert torch.equal(recorded(*data), found)


@native
@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: rule.clipping)
@pytest.mark.parametrize("again", ["", "second", "spare"])
def test_new_memory_does_not_show(again, rule):
    model, data = Net(), batch(5, 1)
    model.spare = nn.Linear(7, 3)
    chosen = planned(model, examples=2)
    if again == "spare":  # What is not used can't be planned: as if another pass had used it.
        chosen.__dict__["recomputed"] = frozenset({"spare.weight", "spare.bias"})
    elif again:
        chosen = chosen.choosing(again, "recompute")
    expected = total(model, data, chosen, rule)
    with marked_memory():
        found = total(model, data, chosen, rule)
    assert torch.equal(found, expected)
    assert (found[-24:] == 0).all()
    assert (found[:-24] != 0).any()


@native
def test_a_sum_without_norms_has_what_layers_wait_for(monkeypatch):
    model, data = Net(), batch(5, 1)
    no_clip, chosen = ClipRule(1e6), planned(model)
    expected = total(model, data, chosen, no_clip)
    small = torch.zeros(5, dtype=torch.float64)
    monkeypatch.setattr(Arena, "squares", lambda arena: small)
    with marked_memory():
        found = total(model, data, chosen, no_clip)
    assert torch.equal(found, expected)


@native
@pytest.mark.parametrize("choice", ["keep", "recompute"])
def test_what_fills_a_batch_up_adds_nothing(choice):
    model, data = Net(), batch(5, 2)
    chosen = planned(model, 2).choosing("", choice)
    alone = sum(
        total(model, data, chosen, examples=n + 1) - total(model, data, chosen, examples=n)
        for n in range(3)
    )
    found = total(model, data, chosen, examples=3)
    assert torch.equal(found, alone)
    others = tuple(torch.cat([t[:6], batch(2, 2)[i]]) for i, t in enumerate(data))
    assert torch.equal(total(model, others, chosen, examples=3), found)
    assert not torch.equal(total(model, data, chosen), found)
    with pytest.raises(UserError, match="examples: expected at most the 5 of the batch, got 6"):
        total(model, data, chosen, examples=6)


@pytest.mark.parametrize("kind", [Net, Changing])
def test_nothing_is_kept_longer_than_the_sum_takes(kind):
    gc.disable()
    try:
        model, data = kind(), batch(5, 1)
        chosen, made = planned(model), []
        total(model, data, chosen)
        real = torch.empty
        with pytest.MonkeyPatch.context() as patch:

            def empty(*sizes, **options):
                found = real(*sizes, **options)
                made.append(weakref.ref(found))
                return found

            patch.setattr(torch, "empty", empty)
            total(model, data, chosen)
        assert len(made) > 2
        assert not [tensor for tensor in made if tensor() is not None]
    finally:
        gc.enable()


@native
def test_micro_batches_change_the_sum_no_more_than_the_forward_pass():
    model, data = Net(), batch(7, 2)
    gradients = ExampleGradients(model)
    expected = clipped_sum(gradients(losses, *data, draws=2), 0.5)
    chosen = planned(model, 2, examples=3).choosing("", "recompute")
    found = total(model, data, chosen)
    assert (found - expected).abs().max() <= 1e-5 * GRID_UNITS
    assert found.abs().max() > 1e-2 * GRID_UNITS


@native
@pytest.mark.parametrize("value", [1.0, 1e20, float("inf"), float("nan")])
def test_one_example_moves_the_sum_by_at_most_the_clip(value):
    model = Net()
    chosen = planned(model).choosing("", "recompute").choosing("second", "keep")
    x, labels = batch(4, 1)
    x[3] *= value

    def of(count):
        return total(model, (x[:count], labels[:count]), chosen, ClipRule(0.1))

    # The others alone are computed in another batch shape.
    moved = (of(4) - of(3)).double().norm()
    assert moved <= GRID_UNITS * (1 + 1e-5)
    if value == 1.0:
        assert moved > 0.9 * GRID_UNITS
    else:
        assert value == 1e20 or moved <= 1e-5 * GRID_UNITS


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


def test_bad_numbers_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="max_grad_norm must lie in"):
        ClipRule(0.0)
    with pytest.raises(UserError, match="clipping: 'other' is not known"):
        ClipRule(1.0, "other")


class Reversed(torch.autograd.Function):
    """Turns gradients around in the memory in which they come."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mul_(-100.0)


class Restored(torch.autograd.Function):
    """Gives its input back what it overwrote, as networks do that save memory."""

    @staticmethod
    def forward(ctx, x):
        y = 0.01 * x
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        ctx.saved_tensors[0].mul_(100.0)
        return 0.01 * grad


class Branches(nn.Module):
    """Two layers that get the same gradient; `way` is what stands behind or between them."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 6)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.way = way

    def forward(self, words):
        x = self.table(words)
        if self.way == "restored":
            return self.other(Restored.apply(self.one(x)))
        h = self.one(0.001 * x.detach())
        if self.way == "hook":
            h.register_hook(lambda grad: grad.mul_(-100.0))
        if self.way == "reversed":
            h = Reversed.apply(h)
        return h + self.other(x)


def squared(model, words):
    return model(words).square().flatten(1).sum(1)


@pytest.mark.parametrize("choice", ["recompute", "ghost", "keep"])
@pytest.mark.parametrize("way", ["hook", "reversed", "restored", "none"])
def test_what_changes_before_it_is_added_is_refused(way, choice):
    """Else its norm would be that of other values; what is kept would be another gradient."""
    model, words = Branches(way), torch.randint(7, (4, 3))
    chosen = plan(model, [words[:1]], losses=squared, costs=COSTS)
    for name in ("one", "other"):
        chosen = chosen.choosing(name, choice)
    gradients = ExampleGradients(model)
    refused = pytest.raises(UserError, match="changed in place in the backward pass; return a new")
    with nullcontext() if way == "none" else refused:
        found = planned_clipped_sum(gradients, squared, words, plan=chosen, rule=RULES[0])
        expected = RULES[0].sum(gradients(squared, words), gradients.module_sizes)
        assert (found - expected).abs().max() <= 1e-5 * GRID_UNITS
