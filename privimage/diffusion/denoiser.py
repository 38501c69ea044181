"""The EDM denoiser around a raw network, and its training loss.

Equation numbers are those of Karras et al. 2022 (arXiv 2206.00364).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Standard deviation of pixels spread evenly over [-1, 1], for any image set: it is public.
SIGMA_DATA = math.sqrt(1 / 3)

# Noise levels are drawn as ln(sigma) ~ N(-1.2, 1.2^2) (table 1, "Training").
_LOG_SIGMA_MEAN = -1.2
_LOG_SIGMA_STD = 1.2

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Denoiser:
    """D(x, sigma, label): the clean image that the network expects behind a noisy one (eq. 7).

    Attributes:
        network: F(x [rows, C, H, W], c_noise [rows], labels int64 [rows]) -> [rows, C, H, W];
            a `UNet`, or anything that can be called like one.
    """

    network: Network

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Noisy x [rows, C, H, W], sigma [rows] > 0, labels int64 [rows] -> [rows, C, H, W]."""
        s = _as_pixels(sigma, x)
        total = (s**2 + SIGMA_DATA**2).sqrt()
        c_skip = (SIGMA_DATA / total) ** 2
        c_out = s * SIGMA_DATA / total
        c_in = 1 / total
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.network(c_in * x, c_noise, labels)


def losses(
    denoise: Denoise,
    images: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """One weighted squared error an image: lambda(sigma) |D(y + sigma n) - y|^2 (eq. 2 and 8).

    lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

    Args:
        denoise: `Denoiser(network)`.
        images: [rows, C, H, W] in [-1, 1].
        sigma: [rows], noise levels.
        noise: [rows, C, H, W], unit Gaussian.
        labels: int64 [rows], with dropped ones already replaced.

    Returns:
        [rows], mean over the pixels of each image.
    """
    error = denoise(images + _as_pixels(sigma, images) * noise, sigma, labels) - images
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return weight * error.square().mean(dim=(1, 2, 3))


def noise_levels(normal: torch.Tensor) -> torch.Tensor:
    """Unit Gaussians → log-normal noise levels for training."""
    return (_LOG_SIGMA_MEAN + _LOG_SIGMA_STD * normal).exp()


def drop_labels(
    labels: torch.Tensor, coins: torch.Tensor, probability: float, no_label: int
) -> torch.Tensor:
    """Replaces the labels whose coin [rows], uniform in [0, 1), is below `probability`.

    Labels are dropped so that one network learns to denoise with and without them, which is what
    classifier-free guidance needs (Ho and Salimans 2022, arXiv 2207.12598).
    """
    return torch.where(coins < probability, no_label, labels)


def _as_pixels(per_row: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """[rows] -> [rows, 1, 1, 1] in the dtype of `images`."""
    return per_row.to(images.dtype)[:, None, None, None]
