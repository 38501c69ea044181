import numpy as np
import peers
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from privimage.errors import UserError
from privimage.evaluate import manifold, nearest_distances
from privimage.evaluate import neighbours as module


def _features(count, width, seed, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, width, generator=random)


def _radii(features, k):
    found = NearestNeighbors(n_neighbors=k + 1).fit(features).kneighbors(features)[0]
    return found[:, k]


def _by_the_papers(fake, real):
    """The sums of the papers, by another search for neighbours."""
    fake, real = fake.double().numpy(), real.double().numpy()
    distances = np.linalg.norm(fake[:, None] - real[None], axis=2)
    inside = distances <= _radii(real, 5)[None]
    return (
        (distances <= _radii(real, 3)[None]).any(axis=1).mean(),
        (distances <= _radii(fake, 3)[:, None]).any(axis=0).mean(),
        inside.sum() / (5 * len(fake)),
        inside.any(axis=0).mean(),
    )


@pytest.mark.parametrize("chunk", [1024, 13])
@pytest.mark.parametrize(("count", "other", "scale"), [(80, 80, 1.0), (50, 120, 0.7), (90, 40, 2)])
def test_scores_are_those_of_the_papers_and_of_torch_fidelity(
    monkeypatch, chunk, count, other, scale
):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    fake, real = _features(count, 6, 0, scale), _features(other, 6, 1)
    found = manifold(fake, real)
    expected = _by_the_papers(fake, real)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)
    peer = peers.precision_recall_of_torch_fidelity(fake, real)
    assert (found.precision, found.recall) == pytest.approx(peer)
    assert 0.05 < found.precision < 1 or found.recall < 1


def test_a_set_covers_itself():
    features = _features(60, 8, 0)
    found = manifold(features, features.flip(0))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # Each image lies in its own ball, and on average in those of about five others.
    assert 1 <= found.density <= 1.5


def test_far_sets_share_nothing():
    found = manifold(_features(30, 4, 0) + 100, _features(30, 4, 1))
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_a_generator_of_one_image_is_precise_and_recalls_nothing():
    real = _features(50, 4, 1)
    found = manifold(real[:1].expand(40, -1), real)
    assert found.precision == 1
    assert found.recall <= 0.04
    assert found.coverage < 0.4


@pytest.mark.parametrize(
    ("fake", "real", "message"),
    [
        (torch.ones(5, 3), torch.ones(9, 3), "at least 6 images on either side, got 5 and 9"),
        (torch.ones(6, 3), torch.ones(6, 4), "same features"),
        (torch.ones(6, 3) * torch.nan, torch.ones(6, 3), "finite"),
    ],
)
def test_what_has_no_neighbours_is_said(fake, real, message):
    with pytest.raises(UserError, match=message):
        manifold(fake, real)


def _images(count, seed, channels=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 8, 8), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize("chunk", [1024, 10])
def test_the_nearest_image_is_found(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    images, others = _images(33, 0, 3), _images(57, 1, 3)
    expected = NearestNeighbors(n_neighbors=1).fit(others.flatten(1).numpy().astype(float))
    distances = expected.kneighbors(images.flatten(1).numpy().astype(float))[0][:, 0]
    assert nearest_distances(images, others).numpy() == pytest.approx(distances / (3 * 64) ** 0.5)


def test_a_copy_has_no_distance_and_one_grey_level_is_one():
    others = _images(40, 0)
    assert (nearest_distances(others[7:9], others) == 0).all()
    near = torch.where(others > 127, others - 1, others + 1)
    assert nearest_distances(near, others).tolist() == [1.0] * 40


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match="near duplicates"):
        nearest_distances(_images(3, 0), _images(3, 0, 3))
