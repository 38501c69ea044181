"""Distances between two sets of features, and the Inception Score of one; all in float64."""

import numpy as np
import torch

from privimage.errors import UserError

_CHUNK = 1024
_SPLITS = 10


def fid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    In float64. With Σ = RᵀR from the QR decomposition of the centred features, the eigenvalues of
    Σ₁ Σ₂ are the squared singular values of R₁ R₂ᵀ, so that their square roots are had without
    drawing any: no complex rounding errors as with a matrix root, and no loss where covariances
    are singular.

    Args:
        features: [images, features], of the synthetic images.
        reference: [images, features], of the real ones.

    Raises:
        UserError: fewer than two images on either side, other features, or one that is not finite.
    """
    check_features("FID", features, reference, least=2)
    first, second = (part.detach().cpu().double().numpy() for part in (features, reference))
    difference = first.mean(axis=0) - second.mean(axis=0)
    roots = [_covariance_root(part) for part in (first, second)]
    traces = sum(np.square(root).sum() for root in roots)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(float(difference @ difference + traces - 2 * cross), 0.0)


def kid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """The squared maximum mean discrepancy under (xᵀy / d + 1)³ (Bińkowski et al. 2018, sec. 4).

    The unbiased estimate from all pairs at once, so that nothing is drawn; it may be negative where
    the sets are alike. In chunks.

    Args:
        features: [images, d], of the synthetic images.
        reference: [images, d], of the real ones; their number may differ.

    Raises:
        UserError: as in `fid`.
    """
    check_features("KID", features, reference, least=2)
    first, second = features.detach().double(), reference.detach().double()
    within = sum(
        (_kernel_sum(part, part) - _kernel_diagonal_sum(part)) / (len(part) * (len(part) - 1))
        for part in (first, second)
    )
    return within - 2 * _kernel_sum(first, second) / (len(first) * len(second))


def inception_score(logits: torch.Tensor, splits: int = _SPLITS) -> float:
    """The mean over `splits` parts of exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016, sec. 4).

    Args:
        logits: [images, classes], in an order that says nothing.
        splits: parts of equal size, as many as there are images at most.

    Raises:
        UserError: there are no images, or a logit is not finite.
    """
    check_features("the Inception Score", logits, logits, least=1)
    splits = min(splits, len(logits))
    scores = []
    for index in range(splits):
        start, end = (index * len(logits) // splits, (index + 1) * len(logits) // splits)
        log_p = logits[start:end].detach().double().log_softmax(dim=1)
        p = log_p.exp()
        divergence = p * log_p - torch.special.xlogy(p, p.mean(dim=0))
        scores.append(float(divergence.sum(dim=1).mean().exp()))
    return float(np.mean(scores))


def check_features(name: str, first: torch.Tensor, second: torch.Tensor, least: int) -> None:
    """Raises UserError unless the score `name` can be had of two sets of features."""
    if min(len(first), len(second)) < least:
        raise UserError(
            f"{name} needs at least {least} images on either side, "
            f"got {len(first)} and {len(second)}"
        )
    if first.shape[1:] != second.shape[1:] or first.dim() != 2:
        raise UserError(
            f"{name} needs the same features on either side, "
            f"got {list(first.shape)} and {list(second.shape)}"
        )
    if not (first.isfinite().all() and second.isfinite().all()):
        raise UserError(f"{name} needs finite features, got one that is infinite or not a number")


def _kernel_sum(first: torch.Tensor, second: torch.Tensor) -> float:
    width = first.shape[1]
    sums = [((piece @ second.T) / width + 1).pow(3).sum() for piece in first.split(_CHUNK)]
    return float(torch.stack(sums).sum())


def _kernel_diagonal_sum(features: torch.Tensor) -> float:
    return float((features.square().sum(dim=1) / features.shape[1] + 1).pow(3).sum())


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """R with RᵀR the covariance of `features` [images, features]."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    root: np.ndarray = np.asarray(np.linalg.qr(centred, mode="r"))
    return root
