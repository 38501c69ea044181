"""Low precision: bfloat16 activations or weights, gradients and norms in float32."""

import copy

import pytest
import torch
from torch import nn
from truth import one_at_a_time

from privimage.dp import DPSGD, ExampleGradients, Privacy, PrivateEngine

WIDTH = 8


def convolutional():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1), nn.InstanceNorm2d(2, affine=True))


def transformer():
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True)


class Text(nn.Module):
    """Words that repeat, a recurrent layer, a norm, a parameter without a layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, WIDTH)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, words):
        h, _ = self.recurrent(self.words(words))
        return self.head(self.norm(h)) * self.scale


MODELS = {
    "convolutional": (convolutional, lambda: torch.randn(6, 3, 6, 6)),
    "transformer": (transformer, lambda: torch.randn(6, 4, WIDTH)),
    "text": (Text, lambda: torch.randint(0, 5, (6, 9))),
}


def total(output):
    return output.float().flatten(1).sin().sum(1)


def plain(model, x):
    return model(x).flatten(1).sin().sum(1)


def under_autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    return total(output)


def all_under_autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        return total(model(x))


def in_half(model, x):
    x = x.bfloat16() if x.is_floating_point() else x
    return total(model(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("losses", "tolerance"),
    # Of float32 some tens of eps. Of bfloat16, whose eps is 0.0078, some in every activation.
    [(plain, 1e-5), (under_autocast, 0.05), (all_under_autocast, 0.05), (in_half, 0.05)],
)
def test_gradients_and_norms_are_those_of_float64_nearly(name, losses, tolerance):
    make, draw = MODELS[name]
    torch.manual_seed(0)
    model, x = make(), draw()
    exact = copy.deepcopy(model).double()
    wide = x.double() if x.is_floating_point() else x
    expected = one_at_a_time(exact, plain, (wide,), 2)
    if losses is in_half:
        model.bfloat16()
    found = ExampleGradients(model)(losses, x, draws=2)
    assert found.dtype == torch.float32
    assert (found - expected).norm(dim=1).max() <= tolerance * expected.norm(dim=1).min()
    norms = found.double().norm(dim=1)
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=tolerance, atol=0.0)


def test_an_example_s_gradient_is_summed_in_float32():
    # 1000 equal terms of 1: in bfloat16 a sum stops growing at 256.
    words = torch.zeros(2, 1000, dtype=torch.long)
    table = nn.Embedding(1, 1).bfloat16()
    found = ExampleGradients(table)(lambda m, x: m(x).float().sum((1, 2)), words)
    assert found.tolist() == [[1000.0], [1000.0]]
    layer, x = nn.Linear(1, 1), torch.ones(2, 1000, 1)

    def losses(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().sum((1, 2))

    assert ExampleGradients(layer)(losses, x).tolist() == [[1000.0, 1000.0]] * 2


def test_autocast_leaves_float64_alone():
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()

    def losses(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).sin().sum(1)

    found = ExampleGradients(model)(losses, x)
    torch.testing.assert_close(found, one_at_a_time(model, losses, (x,)))


def test_a_private_step_under_autocast():
    torch.manual_seed(0)
    model, x = convolutional(), torch.randn(6, 3, 6, 6)
    privacy = Privacy(noise_multiplier=1.0, sample_rate=0.5, steps=2)
    engine = PrivateEngine(
        model,
        DPSGD(model.parameters(), lr=0.1),
        all_under_autocast,
        x,
        privacy,
        draws_per_example=2,
    )
    engine.step()
    engine.step()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
