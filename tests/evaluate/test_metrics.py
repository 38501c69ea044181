import numpy as np
import peers
import pytest
import torch
from scipy import linalg, stats

from privimage.errors import UserError
from privimage.evaluate import fid, inception_score, kid
from privimage.evaluate import metrics as module


def _features(count, width, seed, scale=1.0, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=random)
    return torch.randn(count, width, generator=random) @ mixed * scale + shift


def _by_matrix_root(first, second):
    """The formula of the paper, word for word, with scipy's root of a general matrix."""
    first, second = first.double().numpy(), second.double().numpy()
    means = first.mean(axis=0) - second.mean(axis=0)
    covariances = [np.cov(part, rowvar=False) for part in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    return means @ means + np.trace(covariances[0] + covariances[1] - 2 * root.real)


@pytest.mark.parametrize("width", [2, 17, 40])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_it_is_the_formula_with_a_general_matrix_root(width, scale):
    first = _features(300, width, 0, scale)
    second = _features(211, width, 1, scale, shift=0.3 * scale)
    expected = _by_matrix_root(first, second)
    assert fid(first, second) == pytest.approx(expected, rel=1e-6)
    assert fid(first, second * 1.001) != pytest.approx(expected, rel=1e-6)


# torch-fidelity and pytorch-fid take roots of covariances, and lose digits where images are few.
@pytest.mark.parametrize(("count", "other", "width"), [(300, 300, 16), (500, 211, 64)])
def test_fid_and_kid_are_those_of_torch_fidelity_and_pytorch_fid(count, other, width):
    first, second = _features(count, width, 0), _features(other, width, 1, shift=0.3)
    expected = fid(first, second)
    assert peers.fid_of_torch_fidelity(first, second) == pytest.approx(expected, rel=1e-6)
    assert peers.fid_of_pytorch_fid(first, second) == pytest.approx(expected, rel=1e-6)
    first = first[:other]
    expected = kid(first, second)
    assert peers.kid_of_torch_fidelity(first, second) == pytest.approx(expected, rel=1e-6)
    assert kid(first, second * 1.001) != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("splits", [1, 10])
def test_the_inception_score_is_that_of_torch_fidelity(splits):
    logits = 3 * _features(257, 20, 0)
    expected = peers.inception_score_of_torch_fidelity(logits, splits)
    assert inception_score(logits, splits) == pytest.approx(expected, rel=1e-9)
    assert inception_score(logits * 1.001, splits) != pytest.approx(expected, rel=1e-6)


def test_the_inception_score_lies_between_one_and_the_number_of_classes():
    sure = 1000 * torch.eye(8).repeat(10, 1)
    assert inception_score(sure, 1) == pytest.approx(8)
    assert inception_score(sure[:1].expand(30, -1)) == pytest.approx(1)
    assert inception_score(torch.zeros(4, 8)) == pytest.approx(1)


def test_kid_is_the_kernel_of_all_pairs_but_those_of_one_image():
    first, second = _features(23, 7, 0).double(), _features(31, 7, 1).double()
    kernel = lambda x, y: (float(x @ y) / 7 + 1) ** 3  # noqa: E731
    within = [
        np.mean([kernel(x, y) for i, x in enumerate(part) for j, y in enumerate(part) if i != j])
        for part in (first, second)
    ]
    cross = np.mean([kernel(x, y) for x in first for y in second])
    assert kid(first, second) == pytest.approx(sum(within) - 2 * cross, rel=1e-12)


def test_kid_is_zero_on_average_for_sets_of_one_kind_and_not_for_two():
    random = torch.Generator().manual_seed(0)
    same, other = [], []
    for _ in range(200):
        first, second = torch.randn(2, 20, 4, generator=random)
        same.append(kid(first, second))
        other.append(kid(first, second + 0.5))
    assert stats.ttest_1samp(same, 0).pvalue > 0.01
    assert stats.ttest_1samp(other, 0).pvalue < 1e-6


def test_chunks_change_nothing(monkeypatch):
    first, second = _features(50, 9, 0), _features(41, 9, 1)
    whole = kid(first, second)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert kid(first, second) == pytest.approx(whole, rel=1e-12)


def test_gaussians_have_the_distance_of_the_closed_form():
    # Whitened samples have the wanted mean and covariance exactly, not only on average.
    sample = _features(500, 3, 0).double()
    sample = sample - sample.mean(dim=0)
    white = sample @ torch.linalg.inv(torch.linalg.cholesky(sample.T.cov())).T
    spreads = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.5, 3.0]], dtype=torch.float64)
    first, second = spreads
    mean = torch.tensor([0.1, -2.0, 0.0], dtype=torch.float64)
    found = fid(white * first, white.flip(0) * second + mean)
    # Commuting covariances: |m|² + Σ (s₁ - s₂)².
    expected = mean.square().sum() + (first - second).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_one_feature_is_the_distance_of_two_numbers():
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [5.0]])
    # Means 1 and 5, variances 2 and 0.
    assert fid(first, second) == pytest.approx(16 + 2)


def test_order_and_sides_do_not_matter():
    first, second = _features(100, 9, 0), _features(80, 9, 1)
    shuffled = first[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert fid(shuffled, second) == pytest.approx(fid(first, second), rel=1e-12)
    assert fid(second, first) == pytest.approx(fid(first, second), rel=1e-12)


@pytest.mark.parametrize("count", [2, 5, 400])
def test_a_set_has_no_distance_from_itself(count):
    features = _features(count, 64, 0)
    assert 0 <= fid(features, features.flip(0)) < 1e-9


def test_constant_features_leave_the_distance_of_the_means():
    first, second = torch.full((7, 3), 1.0), torch.full((5, 3), 3.0)
    assert fid(first, second) == pytest.approx(12.0)
    assert fid(first, first) == 0
    varied = _features(200, 3, 0)
    expected = (varied.double().mean(0) - 1).square().sum() + varied.double().T.cov().trace()
    assert fid(first, varied) == pytest.approx(float(expected), rel=1e-9)


def test_fewer_images_than_features_lose_no_accuracy():
    first, second = _features(20, 64, 0), _features(30, 64, 1)
    # Features of no variance on either side add nothing.
    padded = [torch.cat([part, torch.zeros(len(part), 8)], dim=1) for part in (first, second)]
    assert fid(*padded) == pytest.approx(fid(first, second), rel=1e-12)
    assert fid(first, second) == pytest.approx(_by_matrix_root(first, second), rel=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.ones(1, 3), torch.ones(5, 3), "at least 2 images on either side, got 1 and 5"),
        (torch.ones(5, 3), torch.ones(0, 3), "got 5 and 0"),
        (torch.ones(5, 3), torch.ones(5, 4), r"same features .*got \[5, 3\] and \[5, 4\]"),
        (torch.ones(5, 3), torch.ones(5, 3) * torch.nan, "needs finite features"),
        (torch.ones(5, 3) * torch.inf, torch.ones(5, 3), "needs finite features"),
    ],
)
def test_what_has_no_distance_is_said(first, second, message):
    for score in (fid, kid):
        with pytest.raises(UserError, match=message):
            score(first, second)
