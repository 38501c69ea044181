"""Asks, through a noisy histogram, which public classes the sensitive images resemble."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from privimage.data import ImageSet
from privimage.dp import Domain, Ledger, SecretKey
from privimage.errors import UserError, check_count, check_positive

_LOGIT_STEP = 1e-3


@dataclass(frozen=True)
class QuerySettings:
    """How many classes an image votes for, and how much noise the counts get.

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

    Formal guarantee: one image changes `votes_per_image` counts of one row by 1, so the counts have
    an L2 sensitivity of √votes_per_image under add/remove-one adjacency, and the result is that of
    a Gaussian mechanism with the planned noise multiplier
    (tests/semantics/test_query.py::test_one_image_adds_its_votes_to_one_row). The query is reserved
    in the ledger before the images are looked at.

    Args:
        ledger: with a plan that has a query.
        sensitive: the sensitive images.
        predict: uint8 images [n, channels, height, width] to logits [n, public_classes]; an image's
            logits must not depend on its neighbours.
        public_classes: number of public classes.
        settings: votes and noise.

    Returns:
        int64 [labels + 1, public_classes]; the last row holds the images without a declared label
        (an unlabelled set has this row alone).

    Raises:
        UserError: more votes than classes, or the budget can't pay.
    """
    check_votes(settings, public_classes)
    plan = ledger.plan
    if plan is None or plan.query_noise_multiplier is None:
        raise UserError("the ledger's plan has no query")
    key = SecretKey.from_os()
    if not key.is_secret:
        ledger.mark_not_private("test key")
    noise_std = settings.noise_std(plan.query_noise_multiplier)
    ledger.reserve_query(settings.votes_per_image, noise_std)
    votes = top_classes(predict(sensitive.images), settings.votes_per_image)
    counts = count_votes(votes, sensitive.labels, len(sensitive.names) + 1, public_classes)
    noise = key.stream(Domain.QUERY).gaussian_integers(counts.numel(), noise_std)
    return counts + noise.view(counts.shape)


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


def count_votes(votes: torch.Tensor, labels: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The exact histogram, int64 [rows, columns]: sensitive, for `noisy_histogram` alone.

    Args:
        votes: int64 [images, votes_per_image], distinct in each row.
        labels: int64 [images], each below `rows`.
        rows: sensitive labels, and one for images without.
        columns: public classes.
    """
    cells = (labels[:, None] * columns + votes).flatten()
    return torch.bincount(cells, minlength=rows * columns).view(rows, columns)
