"""Layers whose norms are bounds by Gram matrices, and tables that are not kept: in the sum."""

import math

import pytest
import torch
from truth import cancelling, one_at_a_time

from privimage import ops
from privimage.dp import GRID_UNITS, ClipRule, ExampleGradients, plan, planned_clipped_sum
from privimage.dp.gradients import later
from privimage.dp.gradients.costs import Costs
from privimage.errors import UserError
from privimage.ops._library import is_native

COSTS = Costs(
    multiply_add=5e-12, keep=6e-10, norm=2e-10, sum=2e-10, outer=2.05e-10, gram=2e-11, layer=1e-4
)
RULES = [ClipRule(0.05), ClipRule(0.05, "per_layer"), ClipRule(0.05, "automatic")]
native = pytest.mark.skipif(not is_native, reason="the native operators are not built")


class Text(torch.nn.Module):
    """Many words, of which a sentence has few and repeats some; layers with and without bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(300, 6, padding_idx=0)
        self.bag = torch.nn.EmbeddingBag(40, 6, padding_idx=-1)
        self.wide = torch.nn.Linear(6, 40)
        self.narrow = torch.nn.Linear(40, 6, bias=False)
        self.norm = torch.nn.LayerNorm(6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, words):
        h = self.words(words)
        h = self.norm(h + self.narrow(torch.tanh(self.wide(h))))
        return self.head(h.mean(1) + self.bag(words % 40))


def losses(model, words):
    return model(words).sin().sum(1)


def sentences(rows):
    words = torch.randint(0, 300, (rows, 7))
    words[:, 3:5] = words[:, :1]
    return words


def planned(model, draws=1, **options):
    return plan(model, [sentences(draws)], draws=draws, losses=losses, costs=COSTS, **options)


def without_rows(found):
    """A plan with ghosts where they are a choice, and no table kept."""
    for layer in found.layers:
        found = found.choosing(layer.weight, "ghost" if "ghost" in layer.seconds else "recompute")
    return found


@native
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.clipping)
@pytest.mark.parametrize(("draws", "examples"), [(1, 0), (1, 1), (1, 5), (3, 4), (8, 2)])
def test_the_sum_is_that_of_float64_one_example_at_a_time(draws, examples, rule):
    model, words = Text(), sentences(examples * draws)
    chosen = without_rows(planned(model, draws))
    assert chosen.ghosts == {"wide.weight", "narrow.weight", "head.weight"}
    assert {"words.weight", "bag.weight"} <= chosen.recomputed
    gradients = ExampleGradients(model)
    found = planned_clipped_sum(gradients, losses, words, plan=chosen, rule=rule)
    exact = one_at_a_time(Text().double(), losses, (words,), draws)
    expected = rule.sum(exact, gradients.module_sizes)
    assert (found - expected).double().norm() <= max(examples, 1) * 1e-5 * GRID_UNITS
    assert (found.double().norm() > 0.3 * GRID_UNITS) == (examples > 0)


@native
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.clipping)
def test_tables_that_are_not_kept_change_no_bit(rule):
    model, words = Text(), sentences(6)
    kept, gradients = planned(model, 2), ExampleGradients(model)
    assert not kept.recomputed & {"words.weight", "bag.weight"}
    tables = kept.choosing("words", "recompute").choosing("bag", "recompute")
    one, other = (
        planned_clipped_sum(gradients, losses, words, plan=chosen, rule=rule)
        for chosen in (kept, tables)
    )
    assert torch.equal(one, other)


class Picture(torch.nn.Module):
    """Convolutions of all kinds behind each other, a grouped one among them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(2, 6, (3, 2), padding=(1, 0))
        self.strided = torch.nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False)
        self.grouped = torch.nn.Conv2d(5, 10, 3, padding=1, groups=5)
        self.apart = torch.nn.Conv2d(10, 4, (2, 3), dilation=(2, 1), padding=(0, 2))
        self.short = torch.nn.Conv2d(2, 4, 1, stride=(4, 2))
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.strided(torch.tanh(self.first(x))))
        h = torch.tanh(self.apart(torch.tanh(self.grouped(h))))
        return self.head(h.mean((2, 3)) + self.short(x).mean((2, 3)))


def of_pictures(model, x):
    return model(x).sin().sum(1)


@native
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.clipping)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("draws", "examples"), [(1, 4), (3, 2)])
def test_convolutions_give_the_sum_of_float64_one_example_at_a_time(draws, examples, layout, rule):
    model, images = Picture(), torch.randn(examples * draws, 2, 8, 7)
    options = {"losses": of_pictures, "costs": COSTS, "memory_format": layout}
    chosen = plan(model, [torch.zeros(draws, 2, 8, 7)], draws=draws, **options)
    for layer in chosen.layers:
        if "ghost" in layer.seconds:
            chosen = chosen.choosing(layer.weight, "ghost")
    names = {"first", "strided", "apart", "short", "head"}
    assert chosen.ghosts == {f"{name}.weight" for name in names}
    gradients = ExampleGradients(model, layout)
    found = planned_clipped_sum(gradients, of_pictures, images, plan=chosen, rule=rule)
    exact = one_at_a_time(Picture().double(), of_pictures, (images.double(),), draws)
    expected = rule.sum(exact, gradients.module_sizes)
    # Of 144 positions the margin is some 9e-6 of what their products come to one by one.
    assert (found - expected).double().norm() <= examples * 5e-5 * GRID_UNITS
    assert found.double().norm() > 0.3 * GRID_UNITS


class Products(torch.nn.Module):
    """A linear layer whose gradient an example brings along: at 24 positions what goes in, and
    what the gradient of its output is."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8, bias=False)

    def forward(self, both):
        return (self.layer(both[..., :8]) * both[..., 8:]).sum((1, 2))


def of_products(rows, ghosts=True):
    """The sum over examples [rows, 24, 16], clipped to a norm of 2^-20."""
    model = Products()
    options = {"losses": lambda model, x: model(x), "costs": COSTS}
    chosen = plan(model, [rows[:1]], **options).choosing("", "ghost" if ghosts else "keep")
    return planned_clipped_sum(
        ExampleGradients(model), options["losses"], rows, plan=chosen, rule=ClipRule(2.0**-20)
    )


def hostile():
    """An example whose products cancel, so that rounding is all there is of its gradient."""
    x, grad = cancelling(torch.randn(1, 24, 8), torch.randn(1, 24, 8))
    return torch.cat([x * 64, grad], 2)


@native
@pytest.mark.parametrize("value", [1.0, 0.0, 1e15, math.inf, math.nan])
def test_one_example_moves_the_sum_by_at_most_the_clip(value):
    torch.manual_seed(1)
    rows = torch.randn(4, 24, 16)
    rows[3] *= value
    before = rows.clone()
    before[3] = 0
    moved = (of_products(rows) - of_products(before)).double().norm()
    assert moved <= GRID_UNITS
    assert (moved > 0.99 * GRID_UNITS) == (value in (1.0, 1e15))


@native
def test_rounding_that_no_gram_matrix_sees_is_paid_for(monkeypatch):
    torch.manual_seed(1)
    row = hostile()
    assert of_products(row, ghosts=False).double().norm() > 0.9 * GRID_UNITS
    assert of_products(row).double().norm() <= GRID_UNITS

    def without_margin(x, grad, examples, taps, geometry, *, with_bias):
        return ops.gram_sums(x, grad, examples, taps, with_bias, geometry)[0].clamp(min=0)

    monkeypatch.setattr(later, "ghost_squares", without_margin)
    assert of_products(row).double().norm() > 2 * GRID_UNITS


@native
def test_wide_layers_of_few_positions_become_ghosts():
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 2))
    found = plan(model, [512], costs=COSTS)
    assert [layer.choice for layer in found.layers] == ["ghost", "keep"]
    assert found.ghosts == {"0.weight"}
    assert "ghost" in str(found)
    assert "KB an example and" in found.layers[0].reason
    tokens = plan(model[:1], [256, 512], costs=COSTS)
    assert [layer.choice for layer in tokens.layers] == ["keep"]
    # More than one choice without rows: the faster one for the price.
    layer = tokens.choosing("0", "recompute").layers[0]
    assert layer.without_rows == "recompute"
    assert layer.reason == "asked for"


@native
def test_wide_convolutions_of_few_pixels_become_ghosts():
    layers = [torch.nn.Conv2d(256, 256, 3, stride=step, padding=1) for step in (1, 2)]
    found = plan(torch.nn.Sequential(*layers), [256, 8, 8], costs=COSTS)
    assert [layer.choice for layer in found.layers] == ["ghost", "ghost"]
    found = plan(layers[0], [256, 32, 32], costs=COSTS)
    assert [layer.choice for layer in found.layers] == ["keep"]


@native
@pytest.mark.parametrize(
    ("layer", "products"),
    [
        (torch.nn.Conv2d(6, 5, 3, padding=1), 64**2 * 6 + 64**2 * (5 + 9)),
        (torch.nn.Conv2d(6, 5, 3, padding=1, stride=2), 4 * 16**2 * 6 + 16**2 * (5 + 9)),
        (torch.nn.Conv2d(6, 5, 1, stride=2), 16**2 * 6 + 16**2 * (5 + 1)),
        (torch.nn.Conv2d(6, 5, (1, 2), stride=(1, 4)), 2 * 16**2 * 6 + 16**2 * (5 + 2)),
    ],
)
def test_a_ghost_s_time_is_that_of_its_products(layer, products):
    free = Costs(multiply_add=0.0, keep=0.0, norm=0.0, sum=0.0, outer=0.0, gram=1.0, layer=0.0)
    found = plan(layer, [6, 8, 8], costs=free)
    assert found.layers[0].seconds["ghost"] == products


@native
def test_a_large_table_is_not_kept_and_a_small_one_is():
    for entries, choice in ((50_000, "recompute"), (20, "keep")):
        model = torch.nn.Embedding(entries, 8)
        words = torch.zeros(1, 9, dtype=torch.long)
        found = plan(model, [words], losses=lambda m, x: m(x).sum((1, 2)), costs=COSTS)
        assert [layer.choice for layer in found.layers] == [choice]
        assert found.layers[0].bytes["recompute"] == 4.0 * 9 * (8 + 2)


class Strange(torch.nn.Module):
    """Weights with fewer choices: of groups, of many pixels, used twice, seen by a norm too."""

    def __init__(self):
        super().__init__()
        self.large = torch.nn.Conv2d(1, 4, 1)
        self.grouped = torch.nn.Conv2d(4, 4, 1, groups=2)
        self.twice = torch.nn.Linear(4, 4)
        self.table = torch.nn.Embedding(5, 4)
        self.tied = torch.nn.Embedding(5, 4)

    def forward(self, x):
        h = self.grouped(self.large(x).mean((2, 3), keepdim=True)).flatten(1)
        h = self.twice(torch.tanh(self.twice(h)))
        read = self.table(x[:, 0, 0].long()) + self.tied(x[:, 0, 0].long())
        return torch.nn.functional.linear(h + read.sum(1), self.tied.weight)


@native
@pytest.mark.parametrize(
    ("name", "choice", "why"),
    [
        ("large", "ghost", "Gram matrices of so many positions take too much memory"),
        ("grouped", "ghost", "Gram matrices are for convolutions of one group"),
        ("twice", "ghost", "used more than once"),
        ("table", "ghost", "exact already"),
        ("tied", "recompute", "used more than once"),
        ("table", "never", "choices are keep, recompute and ghost"),
    ],
)
def test_what_is_no_choice_is_refused_in_a_sentence(name, choice, why):
    found = plan(Strange(), [1, 33, 32], costs=COSTS)
    with pytest.raises(UserError, match=rf"'{choice}' is no choice for '{name}.weight': .*{why}"):
        found.choosing(name, choice)


@native
def test_a_weight_that_more_than_its_layer_uses_is_kept():
    model = torch.nn.Linear(512, 512)

    def with_a_penalty(model, x):
        return model(x).sum(1) + (x[:, :1] * model.weight.sum()).sum(1)

    options = {"losses": with_a_penalty, "costs": COSTS}
    found = plan(model, [torch.zeros(1, 512)], **options)
    assert found.layers[0].reason == "used more than once"
    gradients, x = ExampleGradients(model), torch.randn(2, 512)
    planned_clipped_sum(gradients, with_a_penalty, x, plan=found, rule=RULES[0])
