import math

import pytest
import scipy.stats
import torch

from privimage.diffusion.denoiser import (
    SIGMA_DATA,
    Denoiser,
    drop_labels,
    losses,
    noise_levels,
)

ROWS = 4000
LEVELS = [0.002, 0.05, 0.3, 1.0, 80.0]


def silent(x, noise_condition, labels):
    return torch.zeros_like(x)


def gaussian_images(rows=ROWS, seed=0):
    """Independent pixels N(0, 1/3): for them, D with F = 0 is the best denoiser there is."""
    random = torch.Generator().manual_seed(seed)
    images = SIGMA_DATA * torch.randn(rows, 1, 4, 4, generator=random, dtype=torch.float64)
    noise = torch.randn(rows, 1, 4, 4, generator=random, dtype=torch.float64)
    return images, noise, torch.zeros(rows, dtype=torch.int64)


def test_sigma_data_is_that_of_uniform_pixels():
    assert pytest.approx(math.sqrt(1 / 3), rel=1e-15) == SIGMA_DATA


@pytest.mark.parametrize("level", LEVELS)
def test_network_sees_unit_variance_and_c_noise(level):
    images, noise, labels = gaussian_images()
    seen = {}

    def record(x, noise_condition, labels):
        seen.update(x=x, noise_condition=noise_condition)
        return torch.zeros_like(x)

    sigma = torch.full((ROWS,), level, dtype=torch.float64)
    Denoiser(record)(images + level * noise, sigma, labels)
    assert seen["x"].std().item() == pytest.approx(1, abs=0.02)
    assert seen["noise_condition"][0].item() == pytest.approx(math.log(level) / 4)


@pytest.mark.parametrize("level", LEVELS)
def test_denoiser_without_network_is_the_gaussian_posterior_mean(level):
    images, noise, labels = gaussian_images(rows=10)
    noisy = images + level * noise
    sigma = torch.full((10,), level, dtype=torch.float64)
    best = noisy * (1 / 3) / (1 / 3 + level**2)
    torch.testing.assert_close(Denoiser(silent)(noisy, sigma, labels), best)


@pytest.mark.parametrize("level", LEVELS)
def test_network_output_is_scaled_by_c_out(level):
    sigma = torch.full((2,), level, dtype=torch.float64)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    output = Denoiser(lambda x, c, y: torch.ones_like(x))(x, sigma, torch.zeros(2))
    c_out = level * math.sqrt(1 / 3) / math.sqrt(level**2 + 1 / 3)
    torch.testing.assert_close(output, torch.full_like(x, c_out))


@pytest.mark.parametrize("level", LEVELS)
def test_loss_of_a_new_network_is_1_at_every_noise_level(level):
    """The weight makes the target of F unit variance, so that F = 0 loses 1 (appendix B.6)."""
    images, noise, labels = gaussian_images()
    sigma = torch.full((ROWS,), level, dtype=torch.float64)
    loss = losses(Denoiser(silent), images, sigma, noise, labels)
    assert loss.shape == (ROWS,)
    tolerance = 4 * loss.std().item() / math.sqrt(ROWS)
    assert tolerance < 0.03
    assert loss.mean().item() == pytest.approx(1, abs=tolerance)


def test_loss_of_a_perfect_denoiser_is_0_and_rows_are_separate():
    images, noise, labels = gaussian_images(rows=3)
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    assert torch.equal(losses(lambda x, s, y: images, images, sigma, noise, labels), torch.zeros(3))
    first = losses(Denoiser(silent), images, sigma, noise, labels)[0]
    images[1:], noise[1:] = 5.0, 3.0
    assert torch.equal(losses(Denoiser(silent), images, sigma, noise, labels)[0], first)


def test_noise_levels_are_log_normal():
    levels = noise_levels(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    assert levels.dtype == torch.float32
    logs = levels.double().log().numpy()
    assert scipy.stats.kstest(logs, scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    assert scipy.stats.kstest(logs, scipy.stats.norm(-1.2, 1.15).cdf).pvalue < 1e-4
    assert scipy.stats.kstest(logs, scipy.stats.norm(-1.15, 1.2).cdf).pvalue < 1e-4


def test_labels_are_dropped_by_their_own_coin():
    labels = torch.tensor([0, 1, 2, 3])
    coins = torch.tensor([0.0999, 0.1, 0.0, 0.9])
    assert drop_labels(labels, coins, 0.1, 4).tolist() == [4, 1, 4, 3]
    assert drop_labels(labels, coins, 0.0, 4).tolist() == [0, 1, 2, 3]
    assert drop_labels(labels, coins, 0.1, 4).dtype == torch.int64
