"""The K draws of a privacy unit: noise levels, noises and label coins that cancel out chance.

A unit's K gradients are averaged, then clipped: what is chance in their mean takes the room of what
the images have in common. So they are not drawn one by one. Each by itself is distributed as if it
were, which leaves the expected gradient as it is, but together they spread:

- The levels lie one in each of K equally likely ranges (systematic sampling, as of a batch's times
  in Kingma et al. 2021, arXiv 2107.00630).
- Draws of neighbouring ranges are pairs with opposite noises (antithetic variates, Hammersley and
  Morton 1956), which cancels most of what in a gradient is odd in the noise.
"""

from dataclasses import dataclass

import torch

from privimage.diffusion.denoiser import noise_levels
from privimage.diffusion.words import children, uniforms


@dataclass(frozen=True)
class Draws:
    """K rows for each unit.

    Attributes:
        sigma: noise levels, float32 [units, K].
        noises: a word each, of which `normals` makes the noise; int64 [units, K].
        coins: uniform in [0, 1), of label dropout; float32 [units, K].
    """

    sigma: torch.Tensor
    noises: torch.Tensor
    coins: torch.Tensor


def unit_draws(words: torch.Tensor, count: int) -> Draws:
    """`count` draws of each unit, a function of its own word alone.

    Draws k and k + ceil(count / 2) are a pair: of one image, also where the draws go round a
    person's few.

    Args:
        words: one for each unit, int64 [units].
        count: K.
    """
    pairs = -(-count // 2)
    offset, noises, coins = children(words, 1 + pairs + count).split([1, pairs, count], dim=1)
    # In the middle of the 2^-24 that a uniform number stands for: neither 0 nor 1.
    place = uniforms(offset).double() + 2.0**-25
    ranges = torch.cat([torch.arange(0, count, 2), torch.arange(1, count, 2)]).double() / count
    return Draws(
        sigma=noise_levels(torch.special.ndtri((place + ranges) % 1)).float(),
        noises=torch.cat([noises, ~noises], dim=1)[:, :count],
        coins=uniforms(coins),
    )
