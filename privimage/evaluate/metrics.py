"""The Fréchet distance between two sets of features."""

import numpy as np
import torch

from privimage.errors import UserError


def fid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    In float64. The trace of the square root is the sum of the square roots of the eigenvalues of
    Σ₁^½ Σ₂ Σ₁^½, which is symmetric: no complex rounding errors as with a general matrix root.

    Args:
        features: [images, features], of the synthetic images.
        reference: [images, features], of the real ones.

    Raises:
        UserError: fewer than two images on either side.
    """
    if min(len(features), len(reference)) < 2:
        raise UserError(
            f"FID needs at least 2 images on either side, got {len(features)} and {len(reference)}"
        )
    first, second = (part.double().numpy() for part in (features, reference))
    difference = first.mean(axis=0) - second.mean(axis=0)
    covariances = [np.atleast_2d(np.cov(part, rowvar=False)) for part in (first, second)]
    root = _symmetric_root(covariances[0])
    product = root @ covariances[1] @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    return float(difference @ difference + traces - 2 * cross)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
