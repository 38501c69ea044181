"""Scores from nearest neighbours: precision, recall, density, coverage; and near duplicates."""

from dataclasses import dataclass

import torch

from privimage.errors import UserError
from privimage.evaluate.metrics import check_features

_CHUNK = 1024
PRECISION_NEIGHBOURS = 3
COVERAGE_NEIGHBOURS = 5


@dataclass(frozen=True)
class Manifold:
    """What k-nearest-neighbour balls say of two sets; fractions, but for `density`."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(features: torch.Tensor, reference: torch.Tensor) -> Manifold:
    """Precision and recall, density and coverage of synthetic images, in float64, in chunks.

    Around each image lies a ball that reaches to its k-th nearest neighbour in its own set.
    Precision is the fraction of synthetic images in the ball of a real one, recall the fraction of
    real images in the ball of a synthetic one, at k = 3 (Kynkäänniemi et al. 2019, arXiv
    1904.06991, eq. 1-3). At k = 5, density is in how many real balls a synthetic image lies, over
    k, and coverage the fraction of real balls that hold a synthetic image (Naeem et al. 2020, arXiv
    2002.09797, eq. 3-4).

    Args:
        features: [images, features], of the synthetic images.
        reference: [images, features], of the real ones.

    Raises:
        UserError: five images or fewer on a side, other features, or one that is not finite.
    """
    check_features("precision and recall", features, reference, COVERAGE_NEIGHBOURS + 1)
    fake, real = features.detach().double(), reference.detach().double()
    fake_radius = _radii(fake, (PRECISION_NEIGHBOURS,))[:, 0]
    real_radius, wide_radius = _radii(real, (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS)).T
    precise = inside = 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for piece, radius in zip(fake.split(_CHUNK), fake_radius.split(_CHUNK), strict=True):
        distances = torch.cdist(piece, real)
        precise += int((distances <= real_radius).any(dim=1).sum())
        recalled |= (distances <= radius[:, None]).any(dim=0)
        within = distances <= wide_radius
        inside += int(within.sum())
        covered |= within.any(dim=0)
    return Manifold(
        precision=precise / len(fake),
        recall=float(recalled.double().mean()),
        density=inside / (COVERAGE_NEIGHBOURS * len(fake)),
        coverage=float(covered.double().mean()),
    )


def nearest_distances(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """How far each image is from the nearest of `others`, in grey levels: float64 [images].

    The root mean square of the pixels' differences. The neighbour is chosen by products in float32,
    so one that is farther by a tenth of a grey level may be taken; the distance to it is exact.

    Args:
        images: uint8 [images, channels, height, width].
        others: uint8 [others, channels, height, width].

    Raises:
        UserError: there are no others, or they have another shape.
    """
    if images.shape[1:] != others.shape[1:] or not len(others):
        raise UserError(
            f"near duplicates: images of {list(images.shape[1:])} can't be looked up among "
            f"{len(others)} of {list(others.shape[1:])}"
        )
    flat, candidates = images.flatten(1), others.flatten(1)
    found = []
    for piece in flat.split(_CHUNK):
        query = piece.float()
        best = torch.full((len(piece),), torch.inf)
        place = torch.zeros(len(piece), dtype=torch.int64)
        for start in range(0, len(candidates), _CHUNK):
            block = candidates[start : start + _CHUNK].float()
            # |x|² is the same for all candidates of a query.
            distances = block.square().sum(dim=1) - 2 * query @ block.T
            nearest, where = distances.min(dim=1)
            closer = nearest < best
            best = torch.where(closer, nearest, best)
            place = torch.where(closer, start + where, place)
        difference = piece.double() - candidates[place].double()
        found.append(difference.square().mean(dim=1).sqrt())
    return torch.cat(found)


def _radii(features: torch.Tensor, neighbours: tuple[int, ...]) -> torch.Tensor:
    """Distances to the k-th nearest other image of the set, [images, len(neighbours)]."""
    found = []
    for piece in features.split(_CHUNK):
        nearest = torch.cdist(piece, features).topk(max(neighbours) + 1, largest=False).values
        # The nearest is the image itself.
        found.append(nearest[:, list(neighbours)])
    return torch.cat(found)
