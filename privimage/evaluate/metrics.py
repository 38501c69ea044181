"""The Fréchet distance between two sets of features."""

import numpy as np
import torch

from privimage.errors import UserError


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
    if min(len(features), len(reference)) < 2:
        raise UserError(
            f"FID needs at least 2 images on either side, got {len(features)} and {len(reference)}"
        )
    if features.shape[1:] != reference.shape[1:] or features.dim() != 2:
        raise UserError(
            "FID needs the same features on either side, "
            f"got {list(features.shape)} and {list(reference.shape)}"
        )
    first, second = (part.detach().cpu().double().numpy() for part in (features, reference))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("FID needs finite features, got one that is infinite or not a number")
    difference = first.mean(axis=0) - second.mean(axis=0)
    roots = [_covariance_root(part) for part in (first, second)]
    traces = sum(np.square(root).sum() for root in roots)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(float(difference @ difference + traces - 2 * cross), 0.0)


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """R with RᵀR the covariance of `features` [images, features]."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    root: np.ndarray = np.asarray(np.linalg.qr(centred, mode="r"))
    return root
