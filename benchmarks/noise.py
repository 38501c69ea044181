"""Is the noise the same everywhere, and are its tails right, over far more draws than tests take?

    python benchmarks/noise.py parity [--draws 100000000]
    python benchmarks/noise.py tails [--draws 1000000000]

`parity` holds every instruction set of this machine, and the reference in plain PyTorch, against
each other integer by integer, with a step so fine that float64 itself is visible (std 2^40).
`tails` counts |z| above 4, 5 and 6 and tests each count with α = 1e-6. Exit status 1 if anything is
off. Seen, each on one key: 1e8 draws alike with AVX-512, AVX2, baseline and reference; tails of 1e9
draws 63475, 568, 2 where 63342.5, 573.3, 2.0 are expected.
"""

import argparse
import os
import sys

import numpy as np
import scipy.stats
import torch

from privimage import _host, ops
from privimage.ops import reference

PIECE = 1_000_000
FALSE_ALARM = 1e-6


def main() -> None:
    """Runs one of the two checks with a fresh key."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=("parity", "tails"))
    parser.add_argument("--draws", type=int)
    options = parser.parse_args()
    key = os.urandom(32)
    if options.check == "parity":
        wrong = parity(key, options.draws or 10**8)
    else:
        wrong = tails(key, options.draws or 10**9)
    sys.exit(wrong)


def parity(key: bytes, draws: int) -> bool:
    """Whether any two disagree."""
    names = _host.instruction_sets()
    differences = dict.fromkeys([*names, "reference"], 0)
    tensor = torch.tensor(list(key), dtype=torch.uint8)
    for first in range(0, draws, PIECE):
        expected = ops.gaussian_integers(tensor, 1, first, PIECE, 2.0**40).numpy()
        found = reference.gaussian_integers(tensor, 1, first, PIECE, 2.0**40).numpy()
        differences["reference"] += int((found != expected).sum())
        for name in names:
            data = _host.gaussian_integers(name, key, 1, first, PIECE, 2.0**40)
            differences[name] += int((np.frombuffer(data, dtype="<i8") != expected).sum())
    print(f"{draws:,} draws; integers that differ from the operator's: {differences}")
    return any(differences.values())


def tails(key: bytes, draws: int) -> bool:
    """Whether a count is improbable."""
    tensor = torch.tensor(list(key), dtype=torch.uint8)
    limits = (4, 5, 6)
    counts, largest = dict.fromkeys(limits, 0), 0.0
    for first in range(0, draws, PIECE):
        integers = ops.gaussian_integers(tensor, 1, first, PIECE, 2.0**40)
        sizes = integers.abs().numpy() / 2.0**40
        largest = max(largest, float(sizes.max()))
        for limit in limits:
            counts[limit] += int((sizes > limit).sum())
    wrong = False
    for limit in limits:
        rate = 2 * scipy.stats.norm.sf(limit)
        p_value = scipy.stats.binomtest(counts[limit], draws, rate).pvalue
        wrong |= p_value < FALSE_ALARM
        print(f"|z| > {limit}: {counts[limit]}, expected {draws * rate:.1f}, p = {p_value:.3g}")
    print(f"{draws:,} draws, largest |z| {largest:.4f}")
    return wrong


if __name__ == "__main__":
    main()
