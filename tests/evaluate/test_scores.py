import pytest
import torch

from privimage.evaluate import scores
from privimage.evaluate.result import FeatureFacts
from privimage.evaluate.scores import LEAST_IMAGES, caveats
from privimage.progress import Reporter, Stopped

FACTS = FeatureFacts("efficientnet-lite0", "EfficientNet-Lite0", 6, 32, "0" * 64)


def _outputs(count, seed, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 6, generator=random) + shift
    return features, features @ torch.randn(6, 9, generator=torch.Generator().manual_seed(99))


def _scores(synthetic, real, splits=4, seed=0):
    return scores(synthetic, real, FACTS, splits, seed, Reporter(quiet=True))


def test_identical_sets_are_perfect():
    real = _outputs(120, 0)
    found = _scores(real, real)
    assert found["fid"].value == pytest.approx(0, abs=1e-9)
    # Unbiased where no pair of images is one image, so a little below zero here.
    assert -0.2 < found["kid"].value <= 0
    assert [found[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_a_worse_set_is_worse_by_every_score_and_the_floor_is_that_of_real_images():
    real = _outputs(200, 0)
    good, bad = _scores(_outputs(150, 1), real), _scores(_outputs(150, 1, shift=2.0), real)
    for name in ("fid", "kid"):
        assert good[name].lower_is_better
        assert good[name].value < bad[name].value / 5
        assert good[name].floor.real.value < bad[name].floor.synthetic.value / 5
    for name in ("precision", "density", "coverage", "recall"):
        assert not good[name].lower_is_better
        assert good[name].value > bad[name].value
        assert good[name].floor.real.value > bad[name].floor.synthetic.value
    # Synthetic images of the real distribution score as real ones do, at the same N alone.
    fid = good["fid"]
    assert fid.floor.n == 100
    assert fid.floor.synthetic.value == pytest.approx(fid.floor.real.value, rel=0.5)
    assert fid.value < fid.floor.real.value
    assert fid.floor.real.low < fid.floor.real.value < fid.floor.real.high
    assert fid.floor.real.method == "Student's t over 4 splits of the test set"


def test_labels_and_numbers_are_stated():
    found = _scores(_outputs(50, 1), _outputs(80, 0))
    assert found["fid"].label == "FID (EfficientNet-Lite0)"
    assert all(score.label.endswith("(EfficientNet-Lite0)") for score in found.values())
    assert {(score.n_synthetic, score.n_real) for score in found.values()} == {(50, 80)}
    assert found["kid"].floor.n == 40


def test_a_seed_decides_the_splits():
    real, synthetic = _outputs(60, 0), _outputs(60, 1)
    assert _scores(synthetic, real) == _scores(synthetic, real)
    assert _scores(synthetic, real, seed=1)["fid"].floor != _scores(synthetic, real)["fid"].floor


@pytest.mark.parametrize("count", [LEAST_IMAGES, 2 * LEAST_IMAGES - 1])
def test_a_test_set_too_small_to_split_has_scores_and_no_floor(count):
    found = _scores(_outputs(30, 1), _outputs(count, 0))
    assert {score.floor for score in found.values()} == {None}
    assert any("too small to be split" in said for said in caveats(30, count, FACTS))
    assert _scores(_outputs(30, 1), _outputs(2 * LEAST_IMAGES, 0))["fid"].floor is not None


def test_what_must_be_said_is_said():
    few, enough = caveats(3000, 6, FACTS), caveats(3000, 700, FACTS)
    assert any("rank-deficient" in said for said in few)
    assert not any("rank-deficient" in said for said in enough)
    assert any("not to be compared with those of papers" in said for said in enough)
    standard = FeatureFacts("inception", "Inception-v3", 6, 299, "0" * 64)
    assert caveats(3000, 700, standard) == []


def test_scores_stop_between_splits():
    class Once(Reporter):
        asked = 0

        @property
        def must_stop(self):
            self.asked += 1
            return self.asked > 2

    with pytest.raises(Stopped, match="scores stopped after 2 of 5"):
        scores(_outputs(30, 0), _outputs(30, 1), FACTS, 4, 0, Once(quiet=True))
