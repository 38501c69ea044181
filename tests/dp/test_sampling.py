from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from privimage.dp import Domain, SecretKey, poisson_sample, rate_threshold
from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError

_FALSE_ALARM = 1e-6
_STEPS, _EXAMPLES, _RATE = 6000, 40, 0.05


def _stream():
    return SecretKey.from_os().stream(Domain.SAMPLING)


def _masks(rate):
    threshold = rate_threshold(rate)
    stream = _stream()
    masks = np.zeros((_STEPS, _EXAMPLES), dtype=bool)
    for mask in masks:
        mask[poisson_sample(_EXAMPLES, threshold, stream).numpy()] = True
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
    assert _largest_pair(masks) <= _pair_bound()
    assert abs(np.corrcoef(masks[1:].ravel(), masks[:-1].ravel())[0, 1]) < _LAG_BOUND
    assert abs(np.corrcoef(masks[1:, 1:].ravel(), masks[:-1, :-1].ravel())[0, 1]) < _LAG_BOUND


# Of one correlation over all masks: five standard deviations.
_LAG_BOUND = 5 / np.sqrt(_STEPS * _EXAMPLES)


def _largest_pair(masks):
    """The largest number of steps that two examples have in common."""
    common = masks.astype(np.int64).T @ masks
    return common[np.triu_indices(_EXAMPLES, 1)].max()


def _pair_bound():
    """What 780 pairs exceed with the false-alarm rate: each has Binomial(steps, rate²) in common.

    A correlation's Gaussian limit would not do: 15 steps in common have a heavier tail.
    """
    pairs = _EXAMPLES * (_EXAMPLES - 1) / 2
    return scipy.stats.binom.isf(_FALSE_ALARM / pairs, _STEPS, _RATE**2)


def test_wrong_samplers_are_rejected():
    masks = _masks(_RATE)
    fixed = np.zeros_like(masks)
    fixed[:, :2] = True
    assert _size_p_value(fixed, _RATE) < _FALSE_ALARM
    assert _largest_pair(fixed) > _pair_bound()
    not_empty = masks[masks.any(axis=1)]
    again = np.concatenate([not_empty, not_empty])[:_STEPS]
    assert _size_p_value(again, _RATE) < _FALSE_ALARM
    truncated = masks & (np.cumsum(masks, axis=1) <= 4)
    assert _size_p_value(truncated, _RATE) < _FALSE_ALARM
    shuffled = np.zeros_like(masks)
    for epoch in range(0, _STEPS, 20):
        order = np.random.default_rng(epoch).permutation(_EXAMPLES).reshape(20, 2)
        shuffled[np.arange(epoch, epoch + 20)[:, None], order] = True
    assert _size_p_value(shuffled, _RATE) < _FALSE_ALARM
    lagging = masks.copy()
    lagging[1::2] = masks[::2]
    assert np.corrcoef(lagging[1:].ravel(), lagging[:-1].ravel())[0, 1] > _LAG_BOUND
    assert _size_p_value(_masks(_RATE * 1.1), _RATE) < _FALSE_ALARM
    for rate in (0.9 * _RATE, 1.1 * _RATE):
        taken = int(_masks(rate).sum())
        assert scipy.stats.binomtest(taken, masks.size, _RATE).pvalue < _FALSE_ALARM
    assert scipy.stats.binomtest(int(masks.sum()), masks.size, _RATE).pvalue > _FALSE_ALARM


def test_one_example_more_leaves_the_others_alone(monkeypatch):
    monkeypatch.setenv(TEST_KEY, "any")
    streams = _stream(), _stream()
    for _ in range(50):
        fewer = poisson_sample(300, rate_threshold(0.3), streams[0])
        more = poisson_sample(301, rate_threshold(0.3), streams[1])
        assert torch.equal(fewer, more[more < 300])


def test_two_steps_and_two_keys_sample_differently():
    stream = _stream()
    threshold = rate_threshold(0.5)
    samples = [poisson_sample(200, threshold, s) for s in (stream, stream, _stream())]
    assert not torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_the_comparison_is_unsigned_and_exact(monkeypatch):
    words = [0, 5, 6, 2**63 - 1, 2**63, 2**64 - 1]
    signed = torch.tensor([word - 2**64 if word >= 2**63 else word for word in words])

    class Words:
        def words(self, count):
            return signed[:count]

    for threshold in (0, 1, 6, 2**63, 2**63 + 1, 2**64 - 1, 2**64):
        expected = [i for i, word in enumerate(words) if word < threshold]
        assert poisson_sample(len(words), threshold, Words()).tolist() == expected


def test_rate_one_takes_every_example_and_no_examples_give_none():
    assert torch.equal(poisson_sample(5, rate_threshold(1.0), _stream()), torch.arange(5))
    assert poisson_sample(0, rate_threshold(0.5), _stream()).shape == (0,)


@given(rate=st.floats(1e-18, 1.0))
def test_threshold_never_exceeds_the_declared_rate(rate):
    threshold = rate_threshold(rate)
    assert Fraction(threshold, 2**64) <= Fraction(rate)
    assert Fraction(threshold + 1, 2**64) > Fraction(rate)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(UserError, match="sample_rate"):
        rate_threshold(rate)
