import numpy as np
import pytest
import scipy.stats
import torch

from privimage.dp import poisson_sample, rate_threshold
from privimage.errors import UserError

_FALSE_ALARM = 1e-6
_STEPS, _EXAMPLES, _RATE = 6000, 40, 0.05


def _masks(rate):
    threshold = rate_threshold(rate)
    masks = np.zeros((_STEPS, _EXAMPLES), dtype=bool)
    for mask in masks:
        mask[poisson_sample(_EXAMPLES, threshold).numpy()] = True
    return masks


def _size_p_value(masks, rate):
    """χ² of batch sizes against Binomial(examples, rate), sizes from 6 up in one bin."""
    sizes = np.minimum(masks.sum(axis=1), 6)
    expected = scipy.stats.binom.pmf(np.arange(6), _EXAMPLES, rate)
    expected = np.append(expected, 1 - expected.sum()) * _STEPS
    return scipy.stats.chisquare(np.bincount(sizes, minlength=7), expected).pvalue


def test_sample_is_poisson():
    masks = _masks(_RATE)
    assert _size_p_value(masks, _RATE) > _FALSE_ALARM
    counts = masks.sum(axis=0)
    for count in counts:
        p_value = scipy.stats.binomtest(int(count), _STEPS, _RATE).pvalue
        assert p_value > _FALSE_ALARM / _EXAMPLES
    correlations = np.corrcoef(masks.T)[np.triu_indices(_EXAMPLES, 1)]
    assert np.abs(correlations).max() < 7 / np.sqrt(_STEPS)
    assert abs(np.corrcoef(masks[1:].ravel(), masks[:-1].ravel())[0, 1]) < 0.012


def test_wrong_samplers_are_rejected():
    masks = _masks(_RATE)
    fixed = np.zeros_like(masks)
    fixed[:, :2] = True
    assert _size_p_value(fixed, _RATE) < _FALSE_ALARM
    without_empty = masks[masks.any(axis=1)]
    sizes = np.minimum(without_empty.sum(axis=1), 6)
    assert (sizes == 0).sum() == 0
    assert _size_p_value(_masks(_RATE * 1.1), _RATE) < _FALSE_ALARM


def test_rate_one_takes_every_example_and_no_examples_give_none():
    assert torch.equal(poisson_sample(5, rate_threshold(1.0)), torch.arange(5))
    assert poisson_sample(0, rate_threshold(0.5)).shape == (0,)


def test_threshold_never_exceeds_the_declared_rate():
    for rate in (1e-7, 0.1, 1 / 3, 0.999999999, 1.0):
        assert rate_threshold(rate) <= rate * 2**64
        assert rate_threshold(rate) / 2**64 == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(UserError, match="sample_rate"):
        rate_threshold(rate)
