"""Gaussian noise on the integer grid, from the operating system's cryptographic generator."""

import math
import os

import numpy as np
import torch


def gaussian_integers(count: int, std: float) -> torch.Tensor:
    """Draws `count` values of N(0, std²), each rounded to the nearest integer.

    Every word of randomness comes from `os.urandom`: there is no seed that could be published,
    stored or repeated, and a resumed run draws fresh noise by construction. 64-bit uniforms and
    float64 Box-Muller reach 9.4 standard deviations; added to an integer sum, the rounding is
    post-processing of the unrounded Gaussian mechanism, since rint(c + x) = c + rint(x).

    Returns:
        int64 [count], on the CPU.
    """
    pairs = -(-count // 2)
    words = np.frombuffer(os.urandom(16 * pairs), dtype="<u8").reshape(2, pairs)
    # (x + 1/2) / 2^64 lies in (0, 1]; its logarithm is finite for every x.
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-64
    radius = std * np.sqrt(-2.0 * np.log(uniform[0]))
    angle = 2.0 * math.pi * uniform[1]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(np.rint(values).astype(np.int64))


def secret_generator() -> torch.Generator:
    """A fresh torch generator with a seed that nobody knows.

    For randomness inside one example's own loss (noise levels, label dropout): it need not be
    cryptographic, but must be drawn independently for each example and owe nothing to a public
    seed, or adding one image would visibly shift the draws of the others.
    """
    seed = int.from_bytes(os.urandom(8), "little", signed=True)
    return torch.Generator().manual_seed(seed)
