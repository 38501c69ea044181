"""Poisson sampling: each example enters a step by itself, by comparing 64 secret random bits."""

import os

import numpy as np
import torch

from privimage.errors import check_probability


def rate_threshold(sample_rate: float) -> int:
    """The integer t for which `word < t` holds with probability t / 2^64 <= `sample_rate`.

    Raises:
        UserError: the rate is outside (0, 1].
    """
    check_probability("sample_rate", sample_rate)
    return int(sample_rate * 2.0**64)


def poisson_sample(examples: int, threshold: int) -> torch.Tensor:
    """The indices of one step's examples; often fewer or more than expected, sometimes none.

    Formal guarantee: every index is in the sample with probability `threshold` / 2^64,
    independently of all others and of all other steps; nothing is truncated, reshuffled or drawn
    again (tests/dp/test_sampling.py::test_sample_is_poisson).

    Args:
        examples: number of examples to choose from.
        threshold: from `rate_threshold`; 2^64 takes every example.

    Returns:
        int64 [sampled], ascending.
    """
    if threshold >= 2**64:
        return torch.arange(examples)
    words = np.frombuffer(os.urandom(8 * examples), dtype="<u8")
    return torch.from_numpy(np.flatnonzero(words < np.uint64(threshold)))
