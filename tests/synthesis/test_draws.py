"""The draws of a unit: each as if drawn alone, and together with less chance in their mean."""

import math

import pytest
import torch
from scipy import stats

from privimage.diffusion.denoiser import Denoiser, losses, noise_levels
from privimage.diffusion.unet import UNet, UNetShape
from privimage.diffusion.words import normals
from privimage.synthesis import draws
from privimage.synthesis.draws import unit_draws

SHAPE = UNetShape(image_size=8, image_channels=1, channels=8, multipliers=(1,), classes=3)
WORDS = torch.randint(-(2**63), 2**63 - 1, (2000,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_each_draw_by_itself_is_as_drawn_alone(count):
    drawn = unit_draws(WORDS, count)
    assert drawn.sigma.dtype == torch.float32
    assert drawn.sigma.shape == drawn.noises.shape == drawn.coins.shape == (2000, count)
    for k in range(count):
        levels = drawn.sigma[:, k].log().double().numpy()
        assert stats.kstest(levels, stats.norm(-1.2, 1.2).cdf).pvalue > 0.001
        assert stats.kstest(drawn.coins[:, k].double().numpy(), "uniform").pvalue > 0.001
        noise = normals(drawn.noises[:, k], 20).flatten().double().numpy()
        assert stats.kstest(noise, "norm").pvalue > 0.001
    assert len(drawn.noises.unique()) == 2000 * count


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_each_range_has_a_level_and_neighbours_have_opposite_noises(count):
    drawn, pairs = unit_draws(WORDS, count), math.ceil(count / 2)
    places = torch.special.ndtr((drawn.sigma.double().log() + 1.2) / 1.2)
    ranges = places.sort(dim=1).values
    assert torch.allclose(ranges.diff(dim=1), torch.tensor(1 / count).double(), atol=1e-5)
    first, second = slice(count // 2), slice(pairs, None)
    apart = (places[:, second] - places[:, first]) % 1
    assert torch.allclose(apart, torch.tensor(1 / count).double(), atol=1e-5)
    opposite = normals(drawn.noises[:, second], 7)
    assert torch.equal(normals(drawn.noises[:, first], 7), -opposite)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-24])
def test_levels_are_finite_at_both_ends(monkeypatch, extreme):
    monkeypatch.setattr(draws, "uniforms", lambda words: torch.full(words.shape, extreme))
    for count in (1, 2, 3, 6):
        assert unit_draws(WORDS[:1], count).sigma.log().isfinite().all()


def test_a_unit_s_draws_are_a_function_of_its_word():
    whole, part = unit_draws(WORDS, 4), unit_draws(WORDS[50:60], 4)
    for name in ("sigma", "noises", "coins"):
        assert torch.equal(getattr(whole, name)[50:60], getattr(part, name))


def test_a_unit_s_gradient_has_less_chance_than_that_of_draws_by_themselves():
    torch.manual_seed(0)
    network = UNet(SHAPE)
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(4, 1, 8, 8)
    labels = torch.zeros(4, dtype=torch.int64)

    def variance(draw):
        gradients = []
        for trial in range(60):
            sigma, noise = draw(trial)
            loss = losses(Denoiser(network), image, sigma, noise.view(image.shape), labels).mean()
            parts = torch.autograd.grad(loss, network.parameters(), materialize_grads=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        return float(torch.stack(gradients).var(dim=0).sum())

    def together(trial):
        drawn = unit_draws(WORDS[trial : trial + 1], 4)
        return drawn.sigma[0], normals(drawn.noises[0], 64)

    def alone(trial):
        return noise_levels(torch.randn(4)), torch.randn(4, 64)

    assert variance(together) < 0.7 * variance(alone)
