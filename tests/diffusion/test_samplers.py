"""Oracle: for Gaussian images the best denoiser and the whole solution are known exactly."""

import dataclasses
import math

import pytest
import torch

from privimage.diffusion.samplers import SamplerSettings, guide, sample
from privimage.errors import UserError

STD = 0.4
MEANS = torch.tensor([-0.5, 0.3, 0.1], dtype=torch.float64)  # label 0, label 1, no label
NO_LABEL = 2
ROWS = 4000


class Counted:
    """E[image | x, sigma, label] for pixels N(MEANS[label], STD^2), counting its calls."""

    def __init__(self):
        self.levels = []

    def __call__(self, x, sigma, labels):
        self.levels.append(sigma[0].item())
        sigma, mean = sigma[:, None, None, None], MEANS[labels][:, None, None, None]
        return (STD**2 * x + sigma**2 * mean) / (STD**2 + sigma**2)


def latents(rows=ROWS, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, 4, 4, generator=random, dtype=torch.float64)


def run(settings, x=None, label=1, denoise=None, seed=0):
    x = latents() if x is None else x
    labels = torch.full((len(x),), label)
    random = torch.Generator().manual_seed(seed)
    return sample(denoise or Counted(), x, labels, settings, random, no_label=NO_LABEL)


def exact(x, settings, mean=0.3):
    """Where the probability-flow equation carries these latents."""
    start = x * settings.sigma_max
    return mean + (start - mean) * STD / math.hypot(STD, settings.sigma_max)


def error(settings):
    x = latents(rows=50)
    return (run(settings, x) - exact(x, settings)).abs().max().item()


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings("ddim", steps=200),
        SamplerSettings("ddim_stochastic", steps=200, eta=1.0),
        SamplerSettings("ddim_stochastic", steps=200, eta=0.5),
        SamplerSettings("heun", steps=40),
        SamplerSettings("heun", steps=100, churn=20.0),
        SamplerSettings("heun", steps=100, churn=20.0, churn_range=(0.05, 50.0)),
    ],
)
def test_samples_have_the_mean_and_spread_of_the_data(settings):
    pixels = run(settings).flatten()
    standard_error = STD / math.sqrt(len(pixels))
    assert pixels.mean().item() == pytest.approx(0.3, abs=4 * standard_error + 2e-3)
    assert pixels.std().item() == pytest.approx(STD, rel=0.03)
    # Both bounds are narrow enough to tell a neighbouring value apart.
    assert abs(pixels.mean().item() - 0.32) > 4 * standard_error + 2e-3
    assert pixels.std().item() != pytest.approx(1.08 * STD, rel=0.03)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_method(name, order):
    settings = [
        SamplerSettings(name, steps=steps, sigma_min=1e-5, sigma_max=10.0)
        for steps in (64, 128, 256)
    ]
    coarse, middle, fine = (error(each) for each in settings)
    assert coarse / middle == pytest.approx(2**order, rel=0.25)
    assert middle / fine == pytest.approx(2**order, rel=0.15)


def test_noise_levels_are_those_of_equation_5():
    levels = SamplerSettings(steps=50).noise_levels()
    assert len(levels) == 51
    assert levels[0] == pytest.approx(80)
    assert levels[49] == pytest.approx(0.002)
    assert levels[50] == 0
    middle = (80 ** (1 / 7) + 10 / 49 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert levels[10] == pytest.approx(middle)
    assert SamplerSettings(steps=1).noise_levels() == pytest.approx([80, 0])


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        (SamplerSettings("ddim", steps=50), 50),
        (SamplerSettings("ddim_stochastic", steps=50), 50),
        (SamplerSettings("heun", steps=18), 35),
        (SamplerSettings("ddim", steps=50, guidance=0.5), 100),
    ],
)
def test_number_of_network_evaluations(settings, evaluations):
    denoise = Counted()
    run(settings, latents(rows=2), denoise=denoise)
    assert len(denoise.levels) == evaluations == settings.evaluations()
    assert denoise.levels[0] == pytest.approx(80)
    assert min(denoise.levels) == pytest.approx(0.002)


def test_ddim_ends_with_the_denoised_image_itself():
    x = latents(rows=2)
    one_step = run(SamplerSettings("ddim", steps=1), x)
    sigma = torch.full((2,), 80.0, dtype=torch.float64)
    torch.testing.assert_close(one_step, Counted()(80 * x, sigma, torch.tensor([1, 1])))


@pytest.mark.parametrize("name", ["ddim", "ddim_stochastic", "heun"])
def test_no_guidance_is_the_unguided_sampler_bit_by_bit(name):
    def nan_without_label(x, sigma, labels):
        assert (labels != NO_LABEL).all()
        return Counted()(x, sigma, labels)

    settings = SamplerSettings(name, steps=10, churn=5.0)
    plain = run(settings, latents(rows=8))
    unguided = run(settings, latents(rows=8), denoise=nan_without_label)
    assert torch.equal(plain, unguided)
    denoise = Counted()
    assert guide(denoise, 0.0, NO_LABEL) is denoise


def test_guidance_moves_the_mean_away_from_that_of_no_label():
    """(1 + w) D(label) - w D(none) is the denoiser of data with mean (1 + w) m - w m_none."""
    settings = SamplerSettings("heun", steps=300, guidance=1.5)
    x = latents(rows=50)
    expected = exact(x, settings, mean=2.5 * 0.3 - 1.5 * 0.1)
    torch.testing.assert_close(run(settings, x), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_fresh_noise_of_the_stochastic_sampler_is_that_of_the_ddpm_posterior(eta):
    """From level 2 to 1 with a clean image of 0, a share eta of sqrt(1 (2^2 - 1) / 2^2) is new."""

    def denoise(x, sigma, labels):
        return torch.zeros_like(x) if sigma[0] > 1.5 else x

    settings = SamplerSettings("ddim_stochastic", 2, sigma_max=2.0, sigma_min=1.0, eta=eta)
    fresh = run(settings, torch.zeros_like(latents()), denoise=denoise)
    assert fresh.std().item() == pytest.approx(eta * math.sqrt(3 / 4), rel=0.02)
    kept = run(settings, latents(), denoise=denoise) - fresh
    remaining = math.sqrt(1 - eta**2 * 3 / 4)
    torch.testing.assert_close(kept, latents() * remaining)


def test_labels_are_per_row():
    x = latents()
    labels = torch.arange(ROWS) % 2
    images = sample(
        Counted(), x, labels, SamplerSettings("heun", 20), torch.Generator(), no_label=NO_LABEL
    )
    assert images[0::2].mean().item() == pytest.approx(-0.5, abs=0.02)
    assert images[1::2].mean().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        (SamplerSettings("ddim", 10), False),
        (SamplerSettings("heun", 10), False),
        (SamplerSettings("ddim_stochastic", 10, eta=0.0), False),
        (SamplerSettings("ddim_stochastic", 10), True),
        (SamplerSettings("heun", 10, churn=5.0), True),
        (SamplerSettings("heun", 10, churn=5.0, churn_range=(100.0, 200.0)), False),
    ],
)
def test_randomness_comes_from_the_generator_alone(settings, draws):
    x = latents(rows=2)
    first, again, other = (run(settings, x, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) is not draws
    random = torch.Generator().manual_seed(3)
    before = random.get_state()
    sample(Counted(), x, torch.zeros(2, dtype=torch.int64), settings, random, NO_LABEL)
    assert torch.equal(random.get_state(), before) is not draws


def test_dtype_of_the_latents_is_kept_and_single_precision_suffices():
    settings = SamplerSettings("heun", 18)
    x = latents(rows=20)

    def denoise(x, sigma, labels):
        return Counted()(x, sigma, labels).to(x.dtype)

    single = run(settings, x.float(), denoise=denoise)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), run(settings, x), atol=2e-5, rtol=0)


def test_sampling_builds_no_graph():
    weight = torch.nn.Parameter(torch.ones(()))
    images = run(SamplerSettings(steps=3), denoise=lambda x, sigma, labels: weight * x)
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "eular"}, "known"),
        ({"steps": 0}, "steps"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 90.0}, "sigma_min"),
        ({"rho": -1.0}, "rho"),
        ({"churn": -1.0}, "churn"),
        ({"eta": 1.5}, "eta"),
        ({"guidance": math.nan}, "guidance"),
    ],
)
def test_meaningless_settings_are_refused_by_name(wrong, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(SamplerSettings(), **wrong)
