"""Poisson sampling: each example enters a step by itself, by comparing 64 secret random bits."""

import torch

from privimage.dp.noise import SecretStream
from privimage.errors import check_probability

_CERTAIN = 2**64


def rate_threshold(sample_rate: float) -> int:
    """The integer t for which `word < t` holds with probability t / 2^64 <= `sample_rate`.

    The product is exact and then rounded down, so accounting for `sample_rate` overstates ε, if
    anything.

    Raises:
        UserError: the rate is outside (0, 1].
    """
    check_probability("sample_rate", sample_rate)
    return int(sample_rate * 2.0**64)


def poisson_sample(examples: int, threshold: int, stream: SecretStream) -> torch.Tensor:
    """The indices of one step's examples; often fewer or more than expected, sometimes none.

    Formal guarantee: every index is in the sample with probability `threshold` / 2^64,
    independently of all others and of all other steps; nothing is truncated, reshuffled or drawn
    again (tests/dp/test_sampling.py::test_sample_is_poisson). Whether an index is in is a function
    of key, step and index alone, so an example more changes nothing for the others
    (tests/dp/test_sampling.py::test_one_example_more_leaves_the_others_alone).

    Args:
        examples: number of examples to choose from.
        threshold: from `rate_threshold`; 2^64 takes every example.
        stream: of the domain SAMPLING; a step of it is used, whatever the threshold.

    Returns:
        int64 [sampled], ascending.
    """
    # Signed comparison of words with the highest bit flipped is unsigned comparison.
    words = stream.words(examples) ^ torch.iinfo(torch.int64).min
    if threshold >= _CERTAIN:
        return torch.arange(examples, device="cpu")
    return (words < threshold - _CERTAIN // 2).nonzero().flatten()
