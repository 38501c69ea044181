import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage import ops
from privimage.dp import Domain, SecretKey, noise
from privimage.dp.noise import TEST_KEY

_FALSE_ALARM = 1e-6
_STEPS = 60
# Like a small network: many small tensors and a large one, laid end to end in one flat vector.
_TENSORS = (1, 3, 16, 64, 250, 1000, 4000)


def _stream(domain=Domain.UPDATE):
    return SecretKey.from_os().stream(domain)


def _standard_noise(steps, count, std=2.0**30):
    """[steps, count], in units of the standard deviation."""
    stream = _stream()
    return np.stack([stream.gaussian_integers(count, std).numpy() for _ in range(steps)]) / std


def _looks_gaussian(values):
    """χ² of the energy and Kolmogorov-Smirnov, at the fixed false-alarm rate."""
    tail = _FALSE_ALARM / 2
    low, high = scipy.stats.chi2.ppf([tail, 1 - tail], values.size)
    energy = float((values**2).sum())
    fits = scipy.stats.kstest(values.ravel(), scipy.stats.norm.cdf).pvalue > _FALSE_ALARM
    return low < energy < high and fits


def test_noise_is_gaussian_in_every_tensor_and_another_scale_is_rejected():
    noise = _standard_noise(_STEPS, sum(_TENSORS))
    assert _looks_gaussian(noise)
    assert not _looks_gaussian(0.95 * noise)
    for values in np.split(noise, np.cumsum(_TENSORS)[:-1], axis=1):
        assert _looks_gaussian(values)
    assert not _looks_gaussian(0.95 * noise[:, -_TENSORS[-1] :])
    # One tensor without noise, or with another's noise, is what the whole vector would not show.
    assert not _looks_gaussian(np.zeros((_STEPS, _TENSORS[3])))


def _largest_correlation(one, other):
    """Of two arrays of standard Gaussians, in standard deviations of a chance correlation."""
    return abs(float((one * other).sum())) / np.sqrt(one.size)


def test_steps_and_neighbours_are_uncorrelated():
    bound = scipy.stats.norm.isf(_FALSE_ALARM / 100)
    noise = _standard_noise(_STEPS, 5000)
    # 16 apart are the two Gaussians of one pair, 128 apart the same place in the next tile.
    for lag in (1, 2, 15, 16, 17, 32, 127, 128, 129, 2500):
        assert _largest_correlation(noise[:, lag:], noise[:, :-lag]) < bound
        squares = (noise**2 - 1) / np.sqrt(2)
        assert _largest_correlation(squares[:, lag:], squares[:, :-lag]) < bound
    for lag in (1, 2, 30):
        assert _largest_correlation(noise[lag:], noise[:-lag]) < bound
    mixed = 0.99 * noise[:, 1:] + 0.1 * noise[:, :-1]
    assert _largest_correlation(mixed, noise[:, :-1]) > bound


def test_tails_are_as_heavy_as_they_should_be():
    noise = np.abs(_standard_noise(40, 100_000)).ravel()
    for limit in (2.0, 3.0, 4.0):
        expected = 2 * scipy.stats.norm.sf(limit)
        count = int((noise > limit).sum())
        assert scipy.stats.binomtest(count, noise.size, expected).pvalue > _FALSE_ALARM
        thin = int((0.95 * noise > limit).sum())
        assert scipy.stats.binomtest(thin, noise.size, expected).pvalue < _FALSE_ALARM
    assert noise.max() < 9.5


def test_no_value_is_repeated():
    noise = _standard_noise(4, 10_000, std=2.0**45).ravel()
    assert len(np.unique(noise)) == noise.size


def test_two_keys_share_nothing_and_owe_nothing_to_a_seed():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        draws.append(_stream(Domain.SAMPLING).words(1000))
    assert len(torch.cat(draws).unique()) == 2000


def test_two_keys_share_nothing(monkeypatch):
    """Not even if the operating system gave the same 32 bytes twice: the run nonce differs."""
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: bytes(32) if size == 32 else real(size))
    draws = [_stream(Domain.SAMPLING).words(1000) for _ in range(2)]
    assert len(torch.cat(draws).unique()) == 2000


def test_a_domain_has_one_stream():
    key = SecretKey.from_os()
    streams = [key.stream(domain) for domain in Domain]
    draws = torch.cat([stream.words(1000) for stream in streams for _ in range(3)])
    assert len(draws.unique()) == len(draws)
    with pytest.raises(ValueError, match="in use"):
        key.stream(Domain.UPDATE)


def test_a_forked_process_draws_nothing(monkeypatch):
    """Nor is it given a stream of a key that is its parent's."""
    key = SecretKey.from_os()
    stream = key.stream(Domain.UPDATE)
    state = ops.UpdateState(torch.zeros(3), torch.zeros(3))
    total, rule = torch.zeros(3, dtype=torch.int64), ops.UpdateRule(noise_std=1.0, scale=1.0)
    draws = (
        lambda: stream.words(3),
        lambda: stream.gaussian_integers(3, 1.0),
        lambda: stream.private_update(total, state, rule),
    )
    for draw in draws:
        draw()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for draw in draws:
        with pytest.raises(RuntimeError, match="forked"):
            draw()
    for domain in (Domain.SAMPLING, Domain.UPDATE):
        with pytest.raises(RuntimeError, match="forked"):
            key.stream(domain)
    monkeypatch.undo()
    assert key.stream(Domain.SAMPLING).words(3).unique().numel() == 3


def test_a_key_cannot_leave_the_process():
    secrets = SecretKey.from_os()
    stream = secrets.stream(Domain.UPDATE)
    for secret in (secrets, stream):
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="stays in its process"):
                leave(secret)
        assert not hasattr(secret, "__dict__")
        shown = f"{secret!r} {secret}"
        assert shown.count("is_secret=True") == 2
        for byte in secrets._key.tolist():
            assert f" {byte}" not in shown
            assert f"{byte:02x}{byte:02x}" not in shown


def test_a_test_key_repeats_itself_and_says_so(monkeypatch):
    assert SecretKey.from_os().is_secret
    monkeypatch.setenv(TEST_KEY, "one")
    first, second = (SecretKey.from_os() for _ in range(2))
    assert not first.is_secret
    streams = [key.stream(Domain.QUERY) for key in (first, second)]
    assert not streams[0].is_secret
    assert torch.equal(streams[0].words(100), streams[1].words(100))
    monkeypatch.setenv(TEST_KEY, "another")
    other = SecretKey.from_os().stream(Domain.QUERY)
    assert not torch.isin(other.words(100), streams[0].words(1000)).any()
    monkeypatch.setenv(TEST_KEY, "")
    assert SecretKey.from_os().is_secret


def test_the_test_key_is_read_in_one_place():
    package = Path(__file__).parents[2] / "privimage"
    places = [path for path in package.rglob("*.py") if TEST_KEY in path.read_text()]
    assert [path.name for path in places] == ["noise.py"]
    assert places[0].read_text().count("os.environ") == 1


def test_a_test_key_gives_the_same_in_another_process(monkeypatch):
    monkeypatch.setenv(TEST_KEY, "one")
    here = SecretKey.from_os().stream(Domain.QUERY).gaussian_integers(3, 1e6).tolist()
    code = (
        "from privimage.dp import Domain, SecretKey; "
        "print(SecretKey.from_os().stream(Domain.QUERY).gaussian_integers(3, 1e6).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


def test_dp_code_uses_no_other_randomness(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("randomness that a seed decides")

    for name in ("randn", "rand", "normal", "randint", "randperm", "bernoulli"):
        monkeypatch.setattr(torch, name, forbidden)
    monkeypatch.setattr(torch.Tensor, "normal_", forbidden)
    monkeypatch.setattr(torch.Tensor, "uniform_", forbidden)
    key = SecretKey.from_os()
    key.stream(Domain.UPDATE).gaussian_integers(1000, 1.0)
    key.stream(Domain.SAMPLING).words(1000)


def _updates(*calls):
    """The noise [size] that each call of `private_update`, as (first index, size), draws."""
    stream, drawn = _stream(), []
    for first, size in calls:
        state = ops.UpdateState(torch.zeros(size), torch.zeros(size))
        rule = ops.UpdateRule(noise_std=2.0**30, scale=2.0**-30)
        stream.private_update(torch.zeros(size, dtype=torch.int64), state, rule, first)
        drawn.append(state.momentum)
    return drawn


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 150)), min_size=2, max_size=8))
@settings(max_examples=30)
def test_no_two_updates_draw_the_same_noise(calls):
    drawn = torch.cat(_updates(*calls))
    assert len(drawn.unique()) >= len(drawn) - 1


def test_no_two_threads_draw_the_same_noise():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    words, updates = (
        SecretKey.from_os().stream(domain) for domain in (Domain.QUERY, Domain.UPDATE)
    )

    def update(_):
        zeros = torch.zeros(2000, dtype=torch.int64)
        state = ops.UpdateState(torch.zeros(2000), torch.zeros(2000))
        updates.private_update(zeros, state, ops.UpdateRule(2.0**40, 2.0**-30, step_size=1.0))
        return tuple(state.parameters[:4].tolist())

    try:
        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(lambda _: int(words.words(1)), range(20_000)))
            noises = list(pool.map(update, range(5_000)))
    finally:
        sys.setswitchinterval(interval)
    assert len(set(drawn)) == 20_000
    assert len(set(noises)) == 5_000


def test_streams_of_a_gpu_count_one_after_the_other(monkeypatch):
    class Stream:
        waits: ClassVar = []

        def wait_stream(self, other):
            self.waits.append((self, other))

    stream, one, two = _stream(), Stream(), Stream()
    stream._counter = SimpleNamespace(device=torch.device("cuda:0"))

    def count_on(current, *, captures=False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        stream._wait_for_the_count()

    for current in (one, one, two, two, one):
        count_on(current)
    assert Stream.waits == [(two, one), (one, two)]
    count_on(Stream(), captures=True)
    count_on(two)
    assert Stream.waits[2:] == [(two, one)]


def test_pieces_one_behind_the_other_draw_one_step_s_noise(monkeypatch):
    monkeypatch.setenv(TEST_KEY, "one")
    whole, next_step = _updates((0, 300), (0, 300))
    pieces = _updates((0, 7), (7, 0), (7, 250), (257, 43), (0, 300))
    assert torch.equal(torch.cat(pieces[:4]), whole)
    assert torch.equal(pieces[4], next_step)


def test_a_key_is_overwritten_when_its_last_stream_is_gone(monkeypatch):
    overwritten = []
    monkeypatch.setattr(noise, "_overwrite", overwritten.append)
    key = SecretKey.from_os()
    stream = key.stream(Domain.UPDATE)
    del key
    stream.words(5)
    assert overwritten == []
    del stream
    (memory,) = overwritten
    assert any(memory)
    monkeypatch.undo()
    noise._overwrite(memory)
    assert memory == bytearray(32)


def test_a_key_that_was_overwritten_draws_nothing():
    stream = _stream()
    stream._key.zero_()
    with pytest.raises(RuntimeError, match="was overwritten"):
        stream.words(5)


def test_a_key_is_overwritten_when_the_process_ends():
    code = (
        "import atexit\n"
        "atexit.register(lambda: print(bytes(view) == bytes(32)))\n"
        "from privimage.dp import SecretKey\n"
        "key = SecretKey.from_os()\n"
        "view = key._key.numpy()\n"
        "print(bytes(view) == bytes(32))\n"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "True"]
