"""Near duplicates: are synthetic images closer to another set than real test images are?"""

import torch

from privimage.data import ImageSet, subsample
from privimage.evaluate.neighbours import nearest_distances
from privimage.evaluate.result import NearDuplicates

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75)
_NEAREST = 0.01
# As many give the first hundredth to a few images, and keep the search to seconds.
MOST_LOOKED_UP = 1000
MOST_AMONG = 50_000
_PURPOSE = "near duplicates"


def near_duplicates(
    synthetic: ImageSet, test: ImageSet | None, others: ImageSet, against: str, seed: int
) -> NearDuplicates:
    """The distances of synthetic images to their nearest neighbours among `others`.

    Those of the test images, which no generator has seen, are the reference.

    Args:
        synthetic: up to 1,000 of them are looked up.
        test: real images, as reference, or None; as many.
        others: up to 50,000 of them are looked through.
        against: what the others are: "public" or "sensitive".
        seed: decides which images are taken.
    """
    among = subsample(others, MOST_AMONG, seed, _PURPOSE).images
    looked_up = subsample(synthetic, MOST_LOOKED_UP, seed, _PURPOSE).images
    distances = nearest_distances(looked_up, among)
    reference = closer = None
    if test is not None:
        reference = nearest_distances(subsample(test, MOST_LOOKED_UP, seed, _PURPOSE).images, among)
        closer = float((distances < reference.quantile(_NEAREST)).double().mean())
    return NearDuplicates(
        against=against,
        n_against=len(among),
        n_synthetic=len(distances),
        n_test=0 if reference is None else len(reference),
        quantiles=_QUANTILES,
        synthetic=_at_quantiles(distances),
        test=None if reference is None else _at_quantiles(reference),
        closer_than_test=closer,
    )


def _at_quantiles(distances: torch.Tensor) -> tuple[float, ...]:
    return tuple(distances.quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).tolist())
