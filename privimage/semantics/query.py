"""Asks, through a noisy histogram, which public classes the sensitive images resemble."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from privimage.data import ImageSet
from privimage.dp import Domain, Ledger, SecretKey
from privimage.errors import UserError, check_count, check_positive

_LOGIT_STEP = 1e-3
VOTE = 2**20
"""Grid steps in a vote: what is counted and noised are integers."""
# Pays for every rounding of a float64 on the way to a person's scaled votes.
_MARGIN = 1 - 2**-40


@dataclass(frozen=True)
class QuerySettings:
    """How many classes an image votes for, and how much noise the counts get.

    A person's votes, whatever their number, weigh at most as much as those of one image.

    The noise multiplier is `least_noise_multiplier`, or `noise_times_epsilon` / ε where that is
    more: then the query takes about the same share of a small budget as of a smaller one.
    """

    votes_per_image: int = 1
    least_noise_multiplier: float = 20.0
    noise_times_epsilon: float = 50.0

    def __post_init__(self) -> None:
        check_count("query.votes_per_image", self.votes_per_image)
        check_positive("query.least_noise_multiplier", self.least_noise_multiplier)
        check_positive("query.noise_times_epsilon", self.noise_times_epsilon)

    def noise_multiplier(self, epsilon: float) -> float:
        """σ_q for a run with this ε: standard deviation of the noise / L2 sensitivity."""
        if math.isinf(epsilon):
            return 0.0
        return max(self.least_noise_multiplier, self.noise_times_epsilon / epsilon)

    def noise_std(self, noise_multiplier: float) -> float:
        """The standard deviation of the noise on each count: σ_q · √k1 (`noisy_histogram`)."""
        return noise_multiplier * math.sqrt(self.votes_per_image)


def noisy_histogram(
    ledger: Ledger,
    sensitive: ImageSet,
    predict: Callable[[torch.Tensor], torch.Tensor],
    public_classes: int,
    settings: QuerySettings,
) -> torch.Tensor:
    """Counts the votes of the sensitive images for the public classes, by their own label.

    Formal guarantee: one privacy unit (an image, or a person with all images) changes the counts
    by a vector of L2 norm at most √votes_per_image, whatever its images show and however many they
    are, so under add/remove-one adjacency the result is that of a Gaussian mechanism with the
    planned noise multiplier
    (tests/semantics/test_query.py::test_one_image_adds_its_votes_to_one_row,
    tests/semantics/test_query.py::test_one_person_moves_the_counts_by_at_most_its_sensitivity). The
    query is reserved in the ledger before the images are looked at.

    Args:
        ledger: with a plan that has a query.
        sensitive: the sensitive images.
        predict: uint8 images [n, channels, height, width] to logits [n, public_classes]; an image's
            logits must not depend on its neighbours.
        public_classes: number of public classes.
        settings: votes and noise.

    Returns:
        Votes, float64 [labels + 1, public_classes], each a whole number of grid steps; the last row
        holds the images without a declared label (an unlabelled set has this row alone).

    Raises:
        UserError: more votes than classes, a ledger for another unit, or the budget can't pay.
    """
    check_votes(settings, public_classes)
    plan = ledger.plan
    if plan is None or plan.query_noise_multiplier is None:
        raise UserError("the ledger's plan has no query")
    key = SecretKey.from_os()
    if not key.is_secret:
        ledger.mark_not_private("test key")
    ledger.check_unit(sensitive.unit)
    noise_std = settings.noise_std(plan.query_noise_multiplier)
    ledger.reserve_query(settings.votes_per_image, noise_std)
    votes = top_classes(predict(sensitive.images), settings.votes_per_image)
    shape = (len(sensitive.names) + 1, public_classes)
    counts = count_votes(votes, sensitive.labels, sensitive.units, shape)
    noise = key.stream(Domain.QUERY).gaussian_integers(counts.numel(), noise_std * VOTE)
    return (counts + noise.view(shape)).double() / VOTE


def check_votes(settings: QuerySettings, public_classes: int) -> None:
    """Raises UserError if an image would have to vote for more classes than there are."""
    if settings.votes_per_image > public_classes:
        raise UserError(
            f"query.votes_per_image is {settings.votes_per_image}, but the public set has only "
            f"{public_classes} classes"
        )


def top_classes(logits: torch.Tensor, votes_per_image: int) -> torch.Tensor:
    """The classes that each image votes for: its highest logits, distinct, whatever they hold.

    Logits are compared on a grid of 1e-3, ties going to the lower class, so that no last bit of a
    float decides; a logit that is not a number counts as the lowest.

    Args:
        logits: float [images, classes].
        votes_per_image: at most `classes`.

    Returns:
        int64 [images, votes_per_image].
    """
    lowest = torch.finfo(logits.dtype).min
    rounded = torch.round(logits / _LOGIT_STEP).nan_to_num(lowest, -lowest, lowest)
    return torch.sort(rounded, dim=1, descending=True, stable=True).indices[:, :votes_per_image]


def count_votes(
    votes: torch.Tensor, labels: torch.Tensor, units: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """The exact histogram: sensitive, for `noisy_histogram` alone.

    The votes of all images of a privacy unit are one vector over the cells. If its L2 norm is above
    that of a single image, √votes_per_image, it is scaled down to that, and each cell rounded
    towards zero onto the grid, so that the norm can't grow. The other way, counting at most m
    images of a person, would need an m to be chosen and m times the noise.

    Args:
        votes: int64 [images, votes_per_image], distinct in each row.
        labels: int64 [images], each below `shape[0]`.
        units: int64 [images], the privacy unit of each, 0 … units - 1.
        shape: sensitive labels and one row for images without; public classes.

    Returns:
        int64 of `shape`, in grid steps: `VOTE` is one vote.
    """
    size = shape[0] * shape[1]
    cells = labels[:, None] * shape[1] + votes
    pairs, counts = torch.unique(units[:, None] * size + cells, return_counts=True)
    units, cells = pairs // size, pairs % size
    squares, bound = torch.bincount(units, counts.double().square()), votes.shape[1]
    scale = torch.where(squares <= bound, VOTE, VOTE * _MARGIN * (bound / squares).sqrt())
    clipped = (counts * scale[units]).long()
    return torch.zeros(size, dtype=torch.int64).index_add(0, cells, clipped).view(shape)
