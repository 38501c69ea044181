"""Three samplers that turn Gaussian noise into images with a denoiser.

All solve the probability-flow equation dx/dsigma = (x - D(x, sigma)) / sigma (eq. 1 and 3 of
Karras et al. 2022, arXiv 2206.00364, from where the equation and algorithm numbers come) from
sigma_max down to 0; two of them add fresh noise on the way.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from privimage.errors import (
    UserError,
    check_choice,
    check_count,
    check_non_negative,
    check_positive,
)

Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Attributes:
        name: "ddim", "ddim_stochastic" or "heun".
        steps: number of noise levels; DDIM evaluates the denoiser once at each of them, Heun
            twice at each but the last.
        guidance: w of classifier-free guidance; anything but 0 doubles the evaluations.
        sigma_max: first noise level.
        sigma_min: last noise level before 0.
        rho: how strongly the levels crowd towards sigma_min.
        eta: for "ddim_stochastic": 0 is DDIM, 1 is ancestral sampling as in DDPM.
        churn: for "heun": how much noise is added over all steps (S_churn).
        churn_noise: for "heun": its standard deviation (S_noise).
        churn_range: for "heun": noise levels between which it is added (S_tmin, S_tmax).

    Raises:
        UserError: a name or number that means nothing.
    """

    name: str = "ddim"
    steps: int = 50
    guidance: float = 0.0
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    eta: float = 1.0
    churn: float = 0.0
    churn_noise: float = 1.0
    churn_range: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_choice("name", self.name, _SAMPLERS)
        check_count("steps", self.steps)
        for name in ("sigma_max", "sigma_min", "rho"):
            check_positive(name, getattr(self, name))
        for name in ("churn", "churn_noise"):
            check_non_negative(name, getattr(self, name))
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance must be a finite number, got {self.guidance}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie in [0, 1], got {self.eta}")
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                f"sigma_min must lie below sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    def evaluations(self) -> int:
        """How often the network is called for an image."""
        calls = 2 * self.steps - 1 if self.name == "heun" else self.steps
        return calls * (1 if self.guidance == 0 else 2)

    def noise_levels(self) -> list[float]:
        """sigma_0 = sigma_max > … > sigma_{steps-1} = sigma_min > sigma_steps = 0 (eq. 5)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        last = max(self.steps - 1, 1)
        levels = [(high + i / last * (low - high)) ** self.rho for i in range(self.steps)]
        return [*levels, 0.0]


@torch.no_grad()
def sample(
    denoise: Denoise,
    latents: torch.Tensor,
    labels: torch.Tensor,
    settings: SamplerSettings,
    generator: torch.Generator,
    no_label: int,
) -> torch.Tensor:
    """Images with the given labels.

    Args:
        denoise: D(x, sigma [rows], labels) -> x's shape, usually a `Denoiser`.
        latents: [rows, C, H, W], unit Gaussian; their dtype and device are those of all
            arithmetic outside `denoise`.
        labels: int64 [rows].
        settings: which sampler, and how.
        generator: where the stochastic samplers draw from; others leave it alone.
        no_label: the label that stands for "no label", for guidance.

    Returns:
        [rows, C, H, W], images of about [-1, 1].
    """
    guided = guide(denoise, settings.guidance, no_label)

    def at_level(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return guided(x, x.new_full((len(x),), sigma), labels)

    x = latents * settings.sigma_max
    return _SAMPLERS[settings.name](at_level, x, settings, generator)


def guide(denoise: Denoise, weight: float, no_label: int) -> Denoise:
    """Classifier-free guidance, (1 + w) D(x, label) - w D(x, no label); `denoise` itself at w = 0.

    Ho and Salimans 2022 (arXiv 2207.12598), eq. 6, written for the denoiser.
    """
    if weight == 0:
        return denoise

    def guided(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        unlabelled = denoise(x, sigma, torch.full_like(labels, no_label))
        return (1 + weight) * denoise(x, sigma, labels) - weight * unlabelled

    return guided


_AtLevel = Callable[[torch.Tensor, float], torch.Tensor]


def _ddim(
    denoise: _AtLevel, x: torch.Tensor, settings: SamplerSettings, generator: torch.Generator
) -> torch.Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502) in sigma: Euler steps, the last one to D itself.

    With eta > 0, a part sigma_up of the next level's noise is fresh, and the deterministic step
    goes down to sigma_down, where sigma_up^2 + sigma_down^2 = sigma_{i+1}^2 (their eq. 16).
    """
    eta = settings.eta if settings.name == "ddim_stochastic" else 0.0
    levels = settings.noise_levels()
    for now, after in itertools.pairwise(levels):
        up = eta * after * math.sqrt(1 - (after / now) ** 2)
        down = math.sqrt(after**2 - up**2)
        clean = denoise(x, now)
        x = clean + down / now * (x - clean)
        if up > 0:
            x = x + up * _gaussian(x, generator)
    return x


def _heun(
    denoise: _AtLevel, x: torch.Tensor, settings: SamplerSettings, generator: torch.Generator
) -> torch.Tensor:
    """Algorithm 2: Heun's second-order steps after a little noise was added ("churn")."""
    levels = settings.noise_levels()
    low, high = settings.churn_range
    for now, after in itertools.pairwise(levels):
        churn = settings.churn / settings.steps if low <= now <= high else 0.0
        gamma = min(churn, math.sqrt(2) - 1)
        raised = now * (1 + gamma)
        if gamma > 0:
            spread = settings.churn_noise * math.sqrt(raised**2 - now**2)
            x = x + spread * _gaussian(x, generator)
        slope = (x - denoise(x, raised)) / raised
        euler = x + (after - raised) * slope
        if after == 0:
            return euler
        slope_after = (euler - denoise(euler, after)) / after
        x = x + (after - raised) * (slope + slope_after) / 2
    return x


def _gaussian(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Unit Gaussian noise, drawn on the generator's device."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


_SAMPLERS = {"ddim": _ddim, "ddim_stochastic": _ddim, "heun": _heun}
