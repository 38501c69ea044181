"""Norms by Gram matrices: never below those of what is added, hardly above, one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import one_at_a_time

from privimage import ops
from privimage.dp import GRID_UNITS, ClipRule, ExampleGradients, plan, planned_clipped_sum
from privimage.dp.gradients import later
from privimage.dp.gradients.costs import Costs
from privimage.dp.gradients.ghost import ghost_squares
from privimage.errors import UserError
from privimage.ops._library import is_native

COSTS = Costs(multiply_add=5e-12, keep=6e-10, norm=2e-10, sum=2e-10, gram=2e-11, layer=1e-4)
RULES = [ClipRule(0.05), ClipRule(0.05, "per_layer"), ClipRule(0.05, "automatic")]
ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)
native = pytest.mark.skipif(not is_native, reason="the native operators are not built")


def added(x, grad, *, with_bias):
    """The norms of what the kernel computes for [examples, positions, inputs] and outputs."""
    examples, outputs, inputs = len(x), grad.shape[2], x.shape[2]
    weight = torch.empty(examples, outputs, inputs, 1, 1, dtype=x.dtype)
    bias = torch.empty(examples, outputs, dtype=x.dtype) if with_bias else None
    pixels = [t[:, None].permute(0, 3, 1, 2) for t in (x, grad)]
    ops.example_weight_grad(*pixels, weight, bias, ONE_TAP)
    parts = [weight.flatten(1)] + ([bias] if with_bias else [])
    return torch.cat(parts, 1).double().norm(dim=1)


def cancelling(x, grad):
    """Positions whose products add up to zero exactly, but for the rounding of each of them."""
    third = x.shape[1] // 3
    first, second = grad[:, :third], (64 * grad[:, third : 2 * third]).round() / 64
    first = (64 * first).round() / 64
    together = torch.cat([first, second, -(first + second)], 1)
    return x[:, :third].repeat(1, 3, 1), together


KINDS = {
    "random": lambda x, grad: (x, grad),
    "cancelling": cancelling,
    "nearly": lambda x, grad: (torch.cat([x, x], 1), torch.cat([grad, -grad * (1 + 2**-20)], 1)),
    "zero": lambda x, grad: (x * 0, grad),
    "rectified": lambda x, grad: (x.relu(), grad * (torch.rand_like(grad) < 0.2)),
    "tiny": lambda x, grad: (x * 1e-30, grad * 1e-15),
    "subnormal": lambda x, grad: (x * 1e-40, grad * 1e3),
    "huge": lambda x, grad: (x * 1e30, grad * 1e5),
    "apart": lambda x, grad: (x * 10.0 ** torch.randint(-18, 18, x.shape[:2])[..., None], grad),
}


@given(
    kind=st.sampled_from(list(KINDS)),
    examples=st.integers(0, 3),
    positions=st.integers(1, 9),
    inputs=st.integers(1, 37),
    outputs=st.integers(1, 21),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_the_bound_is_never_below_what_is_added(
    kind, examples, positions, inputs, outputs, with_bias, dtype, seed
):
    torch.manual_seed(seed)
    x = torch.randn(examples, 3 * positions, inputs, dtype=dtype)
    x, grad = KINDS[kind](x, torch.randn(examples, 3 * positions, outputs, dtype=dtype))
    bound = ghost_squares(x, grad, with_bias=with_bias).sqrt()
    norms = added(x, grad, with_bias=with_bias)
    assert (bound >= norms).all()
    wide = torch.cat([x, torch.ones_like(x[..., :1])], 2) if with_bias else x
    reach = (wide.double().norm(dim=2) * grad.double().norm(dim=2)).sum(1)
    pairs = inputs + outputs + x.shape[1] ** 2 + 9
    unit = torch.finfo(dtype).eps / 2
    share = 2.01 * (x.shape[1] + 2) * unit + math.sqrt(pairs) * 2.0**-25.9
    assert (bound <= norms + share * reach + 1e-30).all()
    if kind == "random" and dtype == torch.float32 and positions * inputs > 20:
        assert (bound <= norms * (1 + 1e-4)).all()


def test_a_product_of_one_position_is_known_to_rounding():
    x, grad = torch.randn(4, 1, 300), torch.randn(4, 1, 200)
    bound = ghost_squares(x, grad, with_bias=False).sqrt()
    expected = x[:, 0].double().norm(dim=1) * grad[:, 0].double().norm(dim=1)
    torch.testing.assert_close(bound, expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e25])
def test_what_is_not_finite_or_could_overflow_has_no_norm(value):
    x, grad = torch.randn(3, 4, 5), torch.randn(3, 4, 6)
    expected = ghost_squares(x, grad, with_bias=True)
    x[1, 2, 3], grad[1, 2] = value, 1e25
    bound = ghost_squares(x, grad, with_bias=True)
    assert bound.isfinite().tolist() == [True, False, True]
    assert torch.equal(bound[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("positions", [1, 3, 8, 50])
def test_an_example_s_bits_depend_on_nothing_else(positions):
    x, grad = torch.randn(5, positions, 301), torch.randn(5, positions, 77)
    expected, threads = ghost_squares(x, grad, with_bias=True), torch.get_num_threads()
    order = torch.tensor([3, 1, 4, 0, 2])
    strange = torch.tensor([1.0, math.nan, 1e30, 0.0, 2.0])[:, None, None]
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found = ghost_squares(x[order], grad[order], with_bias=True)
            assert torch.equal(found, expected[order])
            found = ghost_squares(x * strange, grad, with_bias=True)
            assert torch.equal(found[:1], expected[:1])
            alone = ghost_squares(x[2:3], grad[2:3], with_bias=True)
            assert torch.equal(alone, expected[2:3])
    finally:
        torch.set_num_threads(threads)


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
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.way)
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
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.way)
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

    def without_margin(x, grad, *, with_bias):
        return ops.gram_sums(x, grad, with_bias)[0].clamp(min=0)

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
def test_a_large_table_is_not_kept_and_a_small_one_is():
    for entries, choice in ((50_000, "recompute"), (20, "keep")):
        model = torch.nn.Embedding(entries, 8)
        words = torch.zeros(1, 9, dtype=torch.long)
        found = plan(model, [words], losses=lambda m, x: m(x).sum((1, 2)), costs=COSTS)
        assert [layer.choice for layer in found.layers] == [choice]
        assert found.layers[0].bytes["recompute"] == 4.0 * 9 * (8 + 2)


class Strange(torch.nn.Module):
    """Weights that must be kept: a convolution, one used twice, one that a norm of it sees too."""

    def __init__(self):
        super().__init__()
        self.image = torch.nn.Conv2d(1, 4, 1)
        self.twice = torch.nn.Linear(4, 4)
        self.table = torch.nn.Embedding(5, 4)
        self.tied = torch.nn.Embedding(5, 4)

    def forward(self, x):
        h = self.image(x).mean((2, 3))
        h = self.twice(torch.tanh(self.twice(h)))
        read = self.table(x[:, 0, 0].long()) + self.tied(x[:, 0, 0].long())
        return torch.nn.functional.linear(h + read.sum(1), self.tied.weight)


@native
@pytest.mark.parametrize(
    ("name", "choice", "why"),
    [
        ("image", "ghost", "Gram matrices are for linear layers"),
        ("twice", "ghost", "used more than once"),
        ("table", "ghost", "exact already"),
        ("tied", "recompute", "used more than once"),
        ("table", "never", "choices are keep, recompute and ghost"),
    ],
)
def test_what_is_no_choice_is_refused_in_a_sentence(name, choice, why):
    found = plan(Strange(), [1, 2, 2], costs=COSTS)
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
