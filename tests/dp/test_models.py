"""Whole models: float64 autograd one example at a time, and bit by bit the same in any company."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from truth import one_at_a_time

from privimage.diffusion.unet import UNet, UNetShape
from privimage.dp import GRID_UNITS, ExampleGradients, check_independence, clipped_sum

CLASSES = 3


class ViT(nn.Module):
    """A vision transformer in small: patches, positions from a table, encoder, mean, head."""

    def __init__(self, width=8, patch=4, tokens=4):
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Embedding(tokens, width)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True, norm_first=True),
            num_layers=2,
            enable_nested_tensor=False,
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x):
        h = self.patches(x).flatten(2).mT
        places = torch.arange(h.shape[1]).expand(len(h), -1)
        return self.head(self.norm(self.encoder(h + self.positions(places))).mean(1))


class TextClassifier(nn.Module):
    """Words that repeat, padding, a convolution over the text, attention that pools."""

    def __init__(self, words=7, width=6):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)
        self.query = nn.Linear(width, 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens):
        h = self.convolution(self.words(tokens).mT).relu().mT
        weights = self.query(h).masked_fill((tokens == 0)[..., None], -1e4).softmax(1)
        return self.head((weights * h).sum(1))


class TokenViT(nn.Module):
    """A ViT whose class token and positions are parameters of its own; weight-normed patches."""

    def __init__(self, width=8):
        super().__init__()
        self.patches = parametrizations.weight_norm(nn.Conv2d(1, width, 4, stride=4))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 5, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True)
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        h = self.patches(x).flatten(2).mT
        h = torch.cat([self.token.expand(len(h), -1, -1), h], dim=1) + self.positions
        return self.head(self.layer(h)[:, 0] * self.scale)


class RecurrentTagger(nn.Module):
    """Words that repeat, padding, an LSTM both ways, a bag of the same words."""

    def __init__(self, words=7, width=4):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.bag = nn.EmbeddingBag(words, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(3 * width, CLASSES)

    def forward(self, tokens):
        states, _ = self.lstm(self.words(tokens))
        return self.head(torch.cat([states.mean(1), self.bag(tokens)], dim=1))


class Residual(nn.Module):
    """A residual block with group norms; a 1x1 convolution where the size changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(2, outputs) for _ in range(2)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(h)) + self.shortcut(x))


def resnet():
    blocks = Residual(4, 4, 1), Residual(4, 8, 2)
    stem = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.ReLU()
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    return nn.Sequential(*stem, *blocks, *pool)


class Shared(nn.Module):
    """One block applied three times, and an embedding that is the output layer as well."""

    def __init__(self, words=5, width=6):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh())
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        h = self.words(tokens)
        for _ in range(3):
            h = h + self.block(h)
        return self.out(h.mean(1))[:, :CLASSES]


class LoRA(nn.Module):
    """A frozen layer and the low-rank update beside it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def vit_with_lora():
    model = ViT().requires_grad_(False)
    for layer in model.encoder.layers:
        layer.linear1, layer.linear2 = LoRA(layer.linear1), LoRA(layer.linear2)
    model.head.requires_grad_(True)
    return model


def unet():
    return UNet(UNetShape(8, 1, 8, (1, 2), (4,), CLASSES, blocks_per_level=1))


def cross_entropy(model, x, labels):
    return F.cross_entropy(model(x), labels, reduction="none")


def denoising(model, x, labels):
    return (model(x, x.mean((1, 2, 3)), labels) - x).square().mean((1, 2, 3))


def images(rows):
    return torch.randn(rows, 1, 8, 8)


def texts(rows):
    return torch.randint(0, 5, (rows, 6))


MODELS = {
    "UNet": (unet, denoising, images),
    "ViT": (ViT, cross_entropy, images),
    "text classifier": (TextClassifier, cross_entropy, texts),
    "ViT of tokens": (TokenViT, cross_entropy, images),
    "recurrent tagger": (RecurrentTagger, cross_entropy, texts),
    "ResNet": (resnet, cross_entropy, images),
    "shared weights": (Shared, cross_entropy, texts),
    "LoRA": (vit_with_lora, cross_entropy, images),
}


def case(name, rows, dtype=torch.float32, seed=0):
    make, losses, draw = MODELS[name]
    torch.manual_seed(seed)
    model = make()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    x = draw(rows)
    x = x.to(dtype) if x.is_floating_point() else x
    return model.to(dtype), losses, (x, torch.randint(0, CLASSES, (rows,)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("draws", "examples"), [(1, 3), (3, 1), (3, 0), (8, 3), (8, 1)])
def test_a_model_gives_what_autograd_gives_for_each_example(name, draws, examples):
    model, losses, batch = case(name, examples * draws, torch.float64)
    expected = one_at_a_time(model, losses, batch, draws)
    engine = ExampleGradients(model)
    found = engine(losses, *batch, draws=draws)
    assert found.shape == expected.shape == (examples, engine.size)
    # Float64 sums of some thousand terms in another order.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_norms_in_float32_are_close(name):
    model, losses, batch = case(name, 6)
    found = ExampleGradients(model)(losses, *batch, draws=2).double().norm(dim=1)
    exact = copy.deepcopy(model).double()
    x, labels = batch
    x = x.double() if x.is_floating_point() else x
    expected = one_at_a_time(exact, losses, (x, labels), 2).norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_of_any_size_give_one_clipped_sum_nearly(name):
    # Forward passes of other sizes differ by some 1e-7 of the largest activation.
    model, losses, batch = case(name, 8)
    engine = ExampleGradients(model)
    clip = float(engine(losses, *batch).double().norm(dim=1).median())
    sums = []
    for size in (1, 3, 8):
        pieces = zip(*(tensor.split(size) for tensor in batch), strict=True)
        parts = [clipped_sum(engine(losses, *piece), clip) for piece in pieces]
        sums.append(torch.stack(parts).sum(0) / GRID_UNITS)
    assert sums[0].norm() > 1
    for other in sums[1:]:
        assert (other - sums[0]).norm() <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_an_example_is_bitwise_the_same_in_any_company_and_order(name):
    model, losses, batch = case(name, 8)
    engine = ExampleGradients(model)
    gradients = engine(losses, *batch, draws=2)
    order = torch.tensor([3, 0, 2, 1])
    rows = (2 * order[:, None] + torch.arange(2)).flatten()
    moved = engine(losses, *(tensor[rows] for tensor in batch), draws=2)
    assert torch.equal(moved, gradients[order])
    _, _, others = case(name, 8, seed=1)
    mixed = [torch.cat([own[:2], other[2:]]) for own, other in zip(batch, others, strict=True)]
    changed = engine(losses, *mixed, draws=2)
    assert torch.equal(changed[0], gradients[0])
    assert not torch.equal(changed[1], gradients[1])


@pytest.mark.parametrize("name", MODELS)
def test_an_example_is_bitwise_the_same_on_two_threads(name):
    model, losses, batch = case(name, 8)
    engine, before = ExampleGradients(model), torch.get_num_threads()

    def run(threads):
        torch.set_num_threads(threads)
        with torch.no_grad():
            return losses(model, *batch), engine(losses, *batch, draws=2)

    try:
        plain, gradients = run(1)
        other, found = run(2)
        if torch.equal(other, plain):
            assert torch.equal(found, gradients)
        else:
            # oneDNN's own 1x1 convolution rounds by the number of threads: the UNet's alone.
            assert name == "UNet"
            torch.testing.assert_close(found, gradients, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_passes_the_check(name):
    model, losses, batch = case(name, 6)
    check_independence(ExampleGradients(model), losses, *batch, draws=2)


@given(
    width=st.integers(1, 4).map(lambda n: 2 * n),
    patch=st.sampled_from([1, 2, 4]),
    side=st.sampled_from([4, 8]),
    examples=st.integers(1, 3),
    draws=st.integers(1, 3),
)
@settings(max_examples=10)
def test_a_vit_of_any_shape(width, patch, side, examples, draws):
    model = ViT(width, patch, (side // patch) ** 2).double()
    batch = (
        torch.randn(examples * draws, 1, side, side).double(),
        torch.arange(examples * draws) % 3,
    )
    expected = one_at_a_time(model, cross_entropy, batch, draws)
    found = ExampleGradients(model)(cross_entropy, *batch, draws=draws)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
