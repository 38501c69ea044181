"""Other programs that compute the same scores, loaded beside any build of torch."""

from types import SimpleNamespace

import numpy as np
import torch
from scipy import linalg

try:
    import torchvision
except RuntimeError:
    # torchvision as PyPI has it, built for CUDA, beside a torch without it: two of its operators
    # are missing, which no score needs.
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    import torchvision

import torch_fidelity.metric_fid
import torch_fidelity.metric_isc
import torch_fidelity.metric_kid
import torch_fidelity.metric_prc
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_inception
from torch_fidelity import FeatureExtractorInceptionV3

__all__ = ["FeatureExtractorInceptionV3", "pytorch_inception", "torchvision"]


def _matrix_root(matrix, disp=True):
    # pytorch-fid asks for an estimated error, and ignores it; SciPy 1.18 no longer gives one.
    root = linalg.sqrtm(matrix)
    return root if disp else (root, None)


fid_score.linalg = SimpleNamespace(sqrtm=_matrix_root)


def fid_of_torch_fidelity(features, reference):
    statistics = torch_fidelity.metric_fid.fid_features_to_statistics
    both = (statistics(part.double()) for part in (features, reference))
    found = torch_fidelity.metric_fid.fid_statistics_to_metric(*both, verbose=False)
    return found["frechet_inception_distance"]


def fid_of_pytorch_fid(features, reference):
    both = [part.double().numpy() for part in (features, reference)]
    moments = [(part.mean(axis=0), np.cov(part, rowvar=False)) for part in both]
    return fid_score.calculate_frechet_distance(*moments[0], *moments[1])


def kid_of_torch_fidelity(features, reference):
    found = torch_fidelity.metric_kid.kid_features_to_metric(
        features.double(),
        reference.double(),
        kid_subsets=1,
        kid_subset_size=len(features),
        verbose=False,
    )
    return found["kernel_inception_distance_mean"]


def inception_score_of_torch_fidelity(logits, splits):
    found = torch_fidelity.metric_isc.isc_features_to_metric(logits, splits, shuffle=False)
    return found["inception_score_mean"]


def precision_recall_of_torch_fidelity(features, reference):
    found = torch_fidelity.metric_prc.prc_features_to_metric(
        features, reference, prc_neighborhood=3, verbose=False
    )
    return found["precision"], found["recall"]
