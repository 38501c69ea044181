"""Rules by vmap, attention, and rules of a user's own, against autograd one example at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from truth import one_at_a_time

from privimage.dp import ExampleGradients, check_independence, register_rule, watched
from privimage.dp.rules import registry
from privimage.errors import UserError

# Both sides are float64 sums of at most some thousand terms, in another order.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
small = st.integers(1, 3)


@pytest.fixture
def own_rules(monkeypatch):
    """Rules that a test registers are forgotten after it."""
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    monkeypatch.setattr("privimage.dp.gradients.exchange.REGISTERED", registry.REGISTERED)


def assert_exact(model, x, draws, call=lambda model, x: model(x)):
    def losses(model, x):
        return call(model, x).flatten(1).sin().sum(1)

    model, x = model.double(), x.double()
    expected = one_at_a_time(model, losses, (x,), draws)
    assert expected.abs().max() > 0
    torch.testing.assert_close(ExampleGradients(model)(losses, x, draws=draws), expected, **CLOSE)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3, padding="same"), (3, 7)),
        (nn.Conv1d(4, 4, 3, stride=2, groups=2, bias=False), (4, 7)),
        (nn.Conv3d(2, 3, 2, padding=1, dilation=2), (2, 4, 3, 4)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), (3, 5)),
        (nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2), (4, 3, 4)),
        (nn.ConvTranspose3d(2, 4, 2), (2, 3, 2, 3)),
        (nn.PReLU(3), (3, 5)),
        (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (5, 8)),
        (nn.Transformer(8, 2, 1, 1, 8, 0.0, batch_first=True), (5, 8)),
    ],
)
@pytest.mark.parametrize("draws", [1, 3])
def test_layers_by_vmap_and_transformers(layer, shape, draws):
    call = (lambda m, x: m(x, x[:, :2])) if isinstance(layer, nn.Transformer) else None
    assert_exact(layer, torch.randn(6, *shape), draws, call or (lambda m, x: m(x)))


def test_two_inputs():
    assert_exact(nn.Bilinear(4, 4, 3), torch.randn(6, 4), 2, lambda m, x: m(x, x.cos()))


@given(
    examples=small,
    draws=st.sampled_from([1, 3]),
    heads=small,
    tokens=st.tuples(small, small),
    need_weights=st.booleans(),
    batch_first=st.booleans(),
    kind=st.sampled_from(["self", "cross", "three"]),
    mask=st.sampled_from([None, "float", "bool", "causal", "padding", "heads"]),
    bias=st.booleans(),
    added=st.sampled_from([{}, {"add_bias_kv": True}, {"add_zero_attn": True}]),
    width=st.sampled_from([None, 1]),
)
@settings(max_examples=120)
def test_multi_head_attention(
    examples, draws, heads, tokens, need_weights, batch_first, kind, mask, bias, added, width
):
    queries, keys = tokens if kind != "self" else (tokens[0],) * 2
    widths = {} if kind == "self" or width is None else {"kdim": width, "vdim": width + 1}
    form = {"bias": bias, "batch_first": batch_first} | added | widths
    attention = nn.MultiheadAttention(2 * heads, heads, **form)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    options = {"need_weights": need_weights}
    if mask in ("float", "bool"):
        options["attn_mask"] = torch.randn(queries, keys).double()
        if mask == "bool":
            options["attn_mask"] = (options["attn_mask"] > 0) & (torch.arange(keys) > 0)
    if mask == "causal" and queries == keys:
        causal = nn.Transformer.generate_square_subsequent_mask(queries, dtype=torch.float64)
        options |= {"attn_mask": causal, "is_causal": not added}

    def call(model, x):
        given = dict(options)
        if mask == "padding":
            given["key_padding_mask"] = torch.arange(keys).expand(len(x), -1) > 0
        if mask == "heads":
            given["attn_mask"] = x.new_ones(len(x) * heads, queries, keys)
        query, key = x[:, :queries], x[:, :keys]
        if kind == "self":
            key = query
        value = key.sin() if kind == "three" else key
        inputs = [query, key[..., : widths.get("kdim")], value[..., : widths.get("vdim")]]
        if not batch_first:
            swapped = {id(t): t.transpose(0, 1) for t in inputs}
            inputs = [swapped[id(t)] for t in inputs]
        output, weights = model(*inputs, **given)
        output = output if batch_first else output.transpose(0, 1)
        return output if weights is None else torch.cat([output.flatten(1), weights.flatten(1)], 1)

    x = torch.randn(examples * draws, max(queries, keys), 2 * heads)
    assert_exact(attention, x, draws, call)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_refuses_what_pytorch_does_in_two_ways(options):
    model = nn.ModuleDict({"mix": nn.MultiheadAttention(4, 2, batch_first=True, **options)})
    causal = {"attn_mask": torch.ones(3, 3).triu(1).bool(), "is_causal": True}
    losses = lambda m, x: m["mix"](x, x, x, **causal)[0].sum((1, 2))  # noqa: E731
    problem = r"module 'mix' \(MultiheadAttention\).*add_zero_attn are not known with is_causal"
    with pytest.raises(UserError, match=problem):
        ExampleGradients(model)(losses, torch.randn(2, 3, 4))


def test_tokens_first_without_saying_so_is_not_taken_for_rows():
    model = nn.MultiheadAttention(4, 2)
    losses = lambda m, x: m(x, x, x)[0].sum((1, 2))  # noqa: E731
    with pytest.raises(UserError, match=r"second dimension of its input \[2, 3, 4\]"):
        ExampleGradients(model)(losses, torch.randn(2, 3, 4))


def scale_and_shift(x, scale, shift=None):
    return x * scale if shift is None else x * scale + shift


class Scale(nn.Module):
    """A layer whose parameters go through one function of the test's own."""

    def __init__(self, function):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))
        self.function = function

    def forward(self, x):
        return self.function(x, self.scale, shift=self.shift)


@pytest.mark.parametrize("draws", [1, 2])
def test_an_own_layer_by_vmap(own_rules, draws):
    operation = watched(scale_and_shift)
    model = nn.Sequential(Scale(operation), nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"module '0' \(Scale\).*scale_and_shift.*register_rule"):
        ExampleGradients(model)(lambda m, x: m(x).sum(1), torch.ones(2, 3))
    register_rule(operation)
    assert_exact(model, torch.randn(4, 3), draws)
    with pytest.raises(UserError, match="scale_and_shift has a rule already"):
        register_rule(operation)


def own_rule(examples, x, scale, shift):
    per_row = len(x) // examples.count
    scale = examples.expand(scale).repeat_interleave(per_row, dim=0)
    shift = examples.expand(shift).repeat_interleave(per_row, dim=0)
    return x * scale + shift


@pytest.mark.parametrize("draws", [1, 2])
def test_an_own_layer_by_an_own_rule(own_rules, draws):
    operation = watched(scale_and_shift)
    register_rule(operation, own_rule)
    assert_exact(Scale(operation), torch.randn(4, 3), draws)


def test_an_own_function_is_itself_elsewhere(own_rules):
    operation = watched(scale_and_shift)
    x, scale = torch.randn(2, 3), torch.rand(3, requires_grad=True)
    assert torch.equal(operation(x, scale), x * scale)
    assert operation.__name__ == "scale_and_shift"
    register_rule(operation)
    # Without a parameter of the model it is any function.
    model = nn.Linear(3, 1)
    gradients = ExampleGradients(model)(lambda m, x: m(operation(x, scale.detach()))[:, 0], x)
    assert torch.equal(gradients[:, :3], x * scale)


def test_a_wrong_rule_is_found_by_the_check(own_rules):
    def mixing(examples, x, scale, shift):
        return own_rule(examples, x - x.mean(0), scale, shift)

    operation = watched(scale_and_shift)
    register_rule(operation, mixing)
    with pytest.raises(UserError, match="changes with the other examples"):
        check_independence(
            ExampleGradients(Scale(operation)), lambda m, x: m(x).square().sum(1), torch.randn(3, 3)
        )


def test_a_function_that_vmap_runs_may_have_frozen_tensors(own_rules):
    # A frozen tensor whose first dimension happens to be that of the rows belongs to all.
    frozen = torch.rand(4, 4).double()

    def mix(x, weight, other):
        return F.linear(x, weight) @ other

    operation = watched(mix)
    register_rule(operation)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return operation(x, self.weight, other=frozen)

    assert_exact(Mixed(), torch.randn(4, 4), 1)
