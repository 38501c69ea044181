import pytest
import torch

from privimage.data import ImageSet
from privimage.evaluate import near_duplicates


def _set(count, seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(count, dtype=torch.int64), ("a",))


def test_copies_are_found_beside_a_reference_of_images_that_are_none():
    public, test = _set(300, 0), _set(200, 1)
    half = torch.cat([public.images[:50], _set(50, 2).images])
    copied = ImageSet(half, torch.zeros(100, dtype=torch.int64), ("a",))
    found = near_duplicates(copied, test, public, "public", 0)
    assert (found.against, found.n_against, found.n_synthetic, found.n_test) == (
        *("public", 300),
        *(100, 200),
    )
    assert found.synthetic[found.quantiles.index(0.25)] == 0
    assert min(found.test) > 50
    assert found.closer_than_test == pytest.approx(0.5, abs=0.05)


def test_images_of_the_same_kind_are_no_nearer_than_test_images():
    found = near_duplicates(_set(500, 1), _set(500, 2), _set(300, 0), "public", 0)
    assert found.closer_than_test < 0.05
    assert list(found.synthetic) == sorted(found.synthetic)


def test_without_a_test_set_there_is_no_reference():
    found = near_duplicates(_set(30, 1), None, _set(30, 0), "public", 0)
    assert (found.n_test, found.test, found.closer_than_test) == (0, None, None)


def test_large_sets_are_looked_up_in_part(monkeypatch):
    from privimage.evaluate import duplicates

    monkeypatch.setattr(duplicates, "MOST_LOOKED_UP", 20)
    monkeypatch.setattr(duplicates, "MOST_AMONG", 25)
    found = near_duplicates(_set(30, 1), _set(31, 2), _set(32, 0), "public", 0)
    assert (found.n_synthetic, found.n_test, found.n_against) == (20, 20, 25)
    assert found == near_duplicates(_set(30, 1), _set(31, 2), _set(32, 0), "public", 0)
