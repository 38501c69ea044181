"""Every rule against float64 autograd, one example at a time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from truth import one_at_a_time

from privimage.dp.gradients.engine import ExampleGradients
from privimage.errors import UserError

# Both sides are float64 sums of at most some thousand terms, in another order.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

small = st.integers(1, 3)
pairs = st.tuples(small, small)


def squares(model, x, targets):
    """One loss a row, which is linear in no parameter."""
    return (model(x).flatten(1).sin() * targets[:, None]).sum(1)


def assert_exact(model, x, draws, losses=squares):
    model = model.double()
    batch = x, torch.rand(len(x), dtype=torch.float64)
    gradients = ExampleGradients(model)(losses, *batch, draws=draws)
    expected = one_at_a_time(model, losses, batch, draws)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradients, expected, **CLOSE)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(data=st.data(), draws=st.sampled_from([1, 3]), examples=st.sampled_from([1, 3]))
@settings(max_examples=80)
def test_conv2d(data, draws, examples):
    groups = data.draw(st.integers(1, 2), "groups")
    kernel, dilation = data.draw(pairs, "kernel"), data.draw(pairs, "dilation")
    padding = data.draw(
        st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 2), st.tuples(small, small)),
        "padding",
    )
    stride = (1, 1) if padding == "same" else data.draw(pairs, "stride")
    conv = nn.Conv2d(
        groups * data.draw(small, "inputs"),
        groups * data.draw(small, "outputs"),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=data.draw(st.booleans(), "bias"),
        padding_mode=data.draw(st.sampled_from(["zeros", "circular", "reflect"]), "mode"),
    )
    height, width = data.draw(st.integers(7, 9), "height"), data.draw(st.integers(7, 9), "width")
    x = torch.randn(examples * draws, conv.in_channels, height, width, dtype=torch.float64)
    if data.draw(st.booleans(), "channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
    assert_exact(conv, x, draws)


@pytest.mark.parametrize(("side", "taps"), [(5, 3), (40, 3), (40, 1)])
def test_conv2d_after_conv2d(side, taps):
    # The layer before needs its gradient.
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, taps, padding=taps // 2))
    assert_exact(model, torch.randn(6, 2, side, side, dtype=torch.float64), draws=2)


@pytest.mark.parametrize("tied", ["weight", "bias", "both"])
@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.Conv2d(3, 3, 3, padding=1), (4, 3, 5, 6)), (nn.Linear(3, 3), (4, 5, 3))],
)
def test_layers_that_share_weight_or_bias(layer, x, tied):
    model = nn.Sequential(layer, nn.Tanh(), copy.deepcopy(layer))
    if tied != "bias":
        model[2].weight = model[0].weight
    if tied != "weight":
        model[2].bias = model[0].bias
    assert_exact(model, torch.randn(x, dtype=torch.float64), draws=2)


@given(
    draws=st.sampled_from([1, 3]),
    examples=st.sampled_from([1, 3]),
    between=st.lists(small, max_size=2),
    bias=st.booleans(),
)
@settings(max_examples=20)
def test_linear(draws, examples, between, bias):
    x = torch.randn(examples * draws, *between, 4, dtype=torch.float64)
    assert_exact(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5, bias)), x, draws)


@pytest.mark.parametrize("size", [(), (5,), (4, 3)])
@pytest.mark.parametrize("draws", [1, 3])
def test_group_norm(size, draws):
    norm = nn.GroupNorm(3, 6)
    nn.init.normal_(norm.weight)
    x = 2 + torch.randn(6, 6, *size, dtype=torch.float64)
    assert_exact(norm, x, draws)
    if len(size) == 2:
        assert_exact(norm, x.contiguous(memory_format=torch.channels_last), draws)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("between", [(), (2, 5)])
@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_norms_over_the_last_dimensions(norm, between, shape):
    layer = norm(shape)
    nn.init.normal_(layer.weight)
    assert_exact(layer, 1 + torch.randn(6, *between, *shape, dtype=torch.float64), draws=3)


def test_layer_norm_without_bias():
    assert_exact(nn.LayerNorm(4, bias=False), torch.randn(6, 4, dtype=torch.float64), draws=2)


@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("shape", [(6,), (6, 5)])
def test_embedding_adds_up_indices_that_repeat_within_an_example(padding, shape):
    indices = torch.randint(0, 3, shape)
    indices[0], indices[1] = indices[1].clone(), 2
    assert_exact(nn.Embedding(4, 3, padding), indices, draws=3)


def test_an_entry_without_a_gradient_is_counted_from_the_end():
    def use(x, weight):
        return F.embedding(x, weight, padding_idx=-2)

    indices = torch.tensor([[1, 2, 3, 2], [2, 2, 0, 1]])
    assert_exact(Own((4, 3), use), indices, draws=1)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("draws", [1, 3])
def test_embedding_bag(mode, padding, draws):
    bags = torch.tensor([[0, 2, 0], [1, 1, 3], [3, 3, 3], [0, 0, 0], [2, 0, 1], [2, 3, 2]])
    assert_exact(nn.EmbeddingBag(4, 3, mode=mode, padding_idx=padding), bags, draws)


def test_embedding_bag_with_weights():
    class Weighted(nn.EmbeddingBag):
        def forward(self, x):
            return super().forward(x[..., 0].long(), per_sample_weights=x[..., 1])

    x = torch.stack([torch.randint(0, 4, (6, 5)).double(), torch.rand(6, 5).double()], dim=-1)
    assert_exact(Weighted(4, 3, mode="sum"), x, draws=2)


class Bags(nn.EmbeddingBag):
    """Of rows [length, *words] as one list of words and where each row's begin."""

    weighted = False

    def forward(self, rows):
        within = torch.arange(rows.shape[1] - 1) < rows[:, :1]
        ends = rows[:, 0].cumsum(0)
        offsets = F.pad(ends, (1, 0)) if self.include_last_offset else F.pad(ends[:-1], (1, 0))
        words = rows[:, 1:][within]
        return super().forward(words, offsets, words.double().sin() if self.weighted else None)


@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted sum"])
@pytest.mark.parametrize("include_last", [True, False])
@given(data=st.data(), draws=st.sampled_from([1, 3]), examples=st.sampled_from([1, 3]))
@settings(max_examples=15)
def test_embedding_bag_with_offsets(mode, include_last, data, draws, examples):
    count = examples * draws
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count), "lengths")
    padding = data.draw(st.sampled_from([None, 0, -1]), "padding")
    rows = torch.cat([torch.tensor(lengths)[:, None], torch.randint(0, 5, (count, 4))], 1)
    options = {"include_last_offset": include_last, "padding_idx": padding}
    model = Bags(5, 3, mode=mode.split()[-1], **options).double()
    model.weighted = mode == "weighted sum"
    seen = []

    def recorded(model, x):
        seen.append(model(x))
        return seen[-1].sin().sum(1)

    expected = one_at_a_time(model, recorded, (rows,), draws)
    found = ExampleGradients(model)(recorded, rows, draws=draws)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(seen[-1], model(rows))


@pytest.mark.parametrize(
    ("norm", "size"),
    [(nn.InstanceNorm1d, (5,)), (nn.InstanceNorm2d, (4, 3)), (nn.InstanceNorm3d, (2, 3, 2))],
)
@pytest.mark.parametrize("training", [True, False])
def test_instance_norm(norm, size, training):
    layer = norm(3, affine=True).train(training)
    nn.init.normal_(layer.weight)
    assert_exact(layer, 1 + torch.randn(6, 3, *size, dtype=torch.float64), draws=2)


@pytest.mark.parametrize("size", [(), (5,), (4, 2)])
@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu(size, slopes):
    assert_exact(nn.PReLU(slopes), torch.randn(6, 3, *size, dtype=torch.float64), draws=2)


@pytest.mark.parametrize("only", ["weight", "bias"])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3), nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.LayerNorm(6)]
)
def test_weight_or_bias_alone(layer, only):
    layer.requires_grad_(False)
    getattr(layer, only).requires_grad_()
    assert_exact(layer, torch.randn(4, 4, 6, 6, dtype=torch.float64), draws=2)
    layer.requires_grad_(True)


def test_a_weight_that_the_network_computes():
    # Only the bias is a parameter of conv2d here; the weight comes from a linear layer.
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.make = nn.Linear(1, 2 * 9)
            self.bias = nn.Parameter(torch.ones(2))

        def forward(self, x):
            weight = self.make(x.mean((1, 2, 3))[:, None])[0].view(2, 1, 3, 3)
            return F.conv2d(x, weight, self.bias)

    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    assert_exact(Made(), x, draws=1)


class Own(nn.Module):
    """One parameter and what a test does with it."""

    def __init__(self, shape, use):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape))
        self.use = use

    def forward(self, x):
        return self.use(x, self.scale)


@pytest.mark.parametrize(
    ("use", "shape", "problem"),
    [
        (lambda x, w: F.linear(w, x), (3, 3), "can't be the input"),
        (lambda x, w: F.linear(x.T, w), (2, 3), "first dimension of its input"),
        (lambda x, w: F.linear(x[:, 0], w), (2, 3), "no dimension for the examples"),
        (lambda x, w: F.linear(x, w), (3,), "must be .outputs, inputs."),
        (lambda x, w: F.embedding(x.long(), w, max_norm=1.0), (3, 3), "max_norm"),
        (lambda x, w: F.embedding(x.long(), w, scale_grad_by_freq=True), (3, 3), "over all"),
        (lambda x, w: F.embedding(x.long(), w, sparse=True), (3, 3), "sparse"),
        (
            lambda x, w: F.embedding_bag(x.long().flatten(), w, torch.arange(3)),
            (3, 3),
            r"first dimension of its input \[3, 4\]",
        ),
        (
            lambda x, w: F.embedding_bag(x.long(), w, torch.arange(0, 6, 3)),
            (3, 3),
            r"indices must be data \[rows, bag\]",
        ),
        (
            lambda x, w: F.embedding_bag(x.long().flatten(), w, torch.tensor([0, 7])),
            (3, 3),
            "at most the 6 indices",
        ),
        (
            lambda x, w: F.embedding_bag(x.long().flatten(), w, torch.tensor([1, 3])),
            (3, 3),
            "offsets must begin at 0",
        ),
        (lambda x, w: F.embedding_bag(x.long(), w, max_norm=1.0), (3, 3), "max_norm"),
        (
            lambda x, w: F.instance_norm(x[..., None], x[0], x[0], w, use_input_stats=False),
            (3,),
            "track_running_stats",
        ),
        (lambda x, w: F.conv2d(x[:, None], w), (3, 3, 1, 1), "no dimension for the examples"),
    ],
)
def test_a_rule_refuses_what_it_cannot_do(use, shape, problem):
    gradients = ExampleGradients(Own(shape, use))
    with pytest.raises(UserError, match=rf"parameter 'scale' in torch\..*{problem}"):
        gradients(lambda m, x: m(x).sum(1), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("layer", "way_out"),
    [
        (nn.BatchNorm2d(4), "GroupNorm"),
        (nn.BatchNorm1d(4, affine=False), "GroupNorm"),
        (nn.SyncBatchNorm(4), "GroupNorm"),
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), "GroupNorm"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "track_running_stats=False"),
    ],
)
def test_layers_that_mix_examples_are_refused_before_any_data(layer, way_out):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer))
    with pytest.raises(UserError, match=rf"module '1\.0' \({type(layer).__name__}\).*{way_out}"):
        ExampleGradients(model)
