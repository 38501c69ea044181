import numpy as np
import pytest
from scipy import stats

from privimage.evaluate import intervals


def test_an_interval_over_repeats_is_students():
    values = [0.91, 0.93, 0.88, 0.95]
    found = intervals.over_repeats(values, "trainings")
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.method == "Student's t over 4 trainings"


def test_a_single_repeat_has_no_interval():
    found = intervals.over_repeats([0.5], "trainings")
    assert (found.value, found.low, found.high) == (0.5, None, None)


@pytest.mark.parametrize(
    ("fraction", "images", "low", "high"),
    # The ends at 0 and 1 in closed form: 1 - (0.025)^(1/n).
    [(0.0, 20, 0.0, 1 - 0.025 ** (1 / 20)), (1.0, 20, 0.025 ** (1 / 20), 1.0)],
)
def test_an_interval_over_images_is_clopper_and_pearsons(fraction, images, low, high):
    found = intervals.over_images(fraction, images)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    of_t = of_images = 0
    for _ in range(400):
        mean = intervals.over_repeats(random.normal(3, 1, 4).tolist(), "trainings")
        of_t += mean.low <= 3 <= mean.high
        part = intervals.over_images(random.binomial(150, 0.9) / 150, 150)
        of_images += part.low <= 0.9 <= part.high
    assert stats.binomtest(of_t, 400, 0.95).pvalue > 1e-3
    assert stats.binomtest(of_t, 400, 0.90).pvalue < 1e-3
    # This one holds it at least so often.
    assert of_images >= 370
