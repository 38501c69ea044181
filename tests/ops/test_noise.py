import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage import ops
from privimage.ops import reference, reference_noise

KEY = torch.arange(32, dtype=torch.uint8)
# RFC 8439, 2.3.2 and appendix A.1: key, counter, nonce, block.
_VECTORS = [
    (
        bytes(range(32)),
        1,
        "000000090000004a00000000",
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    (
        bytes(32),
        0,
        "000000000000000000000000",
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        bytes(31) + b"\x01",
        1,
        "000000000000000000000000",
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    (
        bytes(32),
        0,
        "000000000000000000000002",
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
]
_native_only = pytest.mark.skipif(
    ops.describe_build().startswith("none"), reason="no native build: only the reference is there"
)


def _host():
    from privimage import _host

    return _host


@_native_only
@pytest.mark.parametrize(("key", "counter", "nonce", "block"), _VECTORS)
def test_native_blocks_are_those_of_the_rfc(key, counter, nonce, block):
    assert _host().chacha20_block(key, counter, bytes.fromhex(nonce)).hex() == block
    assert _host().chacha20_block(key, counter + 1, bytes.fromhex(nonce)).hex() != block


@pytest.mark.parametrize(("key", "counter", "nonce", "block"), _VECTORS)
def test_reference_blocks_are_those_of_the_rfc(key, counter, nonce, block):
    number = counter | int.from_bytes(bytes.fromhex(nonce)[:4], "little") << 32
    step = int.from_bytes(bytes.fromhex(nonce)[4:], "little")
    words = reference_noise.chacha20_blocks(
        torch.tensor(list(key), dtype=torch.uint8), torch.tensor([number]), step
    )
    assert words.flatten().numpy().astype("<u4").tobytes().hex() == block


@given(
    step=st.integers(0, 2**62 - 1),
    first=st.one_of(st.integers(0, 300), st.integers(0, 2**50)),
    count=st.integers(0, 700),
)
@settings(max_examples=60)
def test_words_and_integers_are_the_references(step, first, count):
    words = ops.random_words(KEY, step, first, count)
    assert torch.equal(words, reference.random_words(KEY, step, first, count))
    integers = ops.gaussian_integers(KEY, step, first, count, 1e13)
    assert torch.equal(integers, reference.gaussian_integers(KEY, step, first, count, 1e13))


@_native_only
def test_a_million_integers_are_the_same_in_every_instruction_set_and_in_the_reference():
    count, std = 10**6, 2.0**40
    expected = reference.gaussian_integers(KEY, 5, 77, count, std)
    sets = _host().instruction_sets()
    assert "baseline" in sets
    for name in sets:
        data = _host().gaussian_integers(name, bytes(range(32)), 5, 77, count, std)
        assert np.array_equal(np.frombuffer(data, dtype="<i8"), expected.numpy())


def test_integers_are_box_and_mullers_within_float64():
    """The whole formula once more, by NumPy's logarithm and trigonometry."""
    std = 2.0**45
    words = ops.random_words(KEY, 9, 0, 128 * 500).view(-1, 4, 2, 16).numpy().view(np.uint64)
    radius = np.sqrt(-2.0 * np.log((words[:, :, 0].astype(np.float64) + 0.5) * 2.0**-64))
    angle = 2.0 * np.pi * (words[:, :, 1].astype(np.float64) * 2.0**-64)
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).ravel()
    found = ops.gaussian_integers(KEY, 9, 0, 128 * 500, std).numpy() / std
    assert np.abs(found - expected).max() < 2e-14
    assert np.abs(found - expected[::-1]).max() > 1


@_native_only
def test_functions_are_within_two_units_of_the_exact_ones():
    random = np.random.default_rng(0)
    with mpmath.workdps(40):
        for u in [*np.exp2(-65 * random.random(2000)), *(1 - random.random(2000) * 1e-6)]:
            exact = mpmath.log(mpmath.mpf(float(u)))
            found = _host().natural_logarithm(float(u))
            assert abs(found - exact) < math.ulp(float(exact))
        for word in random.integers(0, 2**63, 2000):
            pair = _host().gaussian_pair(2**63, 2 * int(word))
            radius = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf((2.0**63 + 0.5) * 2.0**-64)))
            angle = 2 * mpmath.pi * 2 * int(word) / mpmath.mpf(2) ** 64
            for found, exact in zip(
                pair, (radius * mpmath.cos(angle), radius * mpmath.sin(angle)), strict=True
            ):
                assert abs(found - exact) < 4 * math.ulp(float(exact)) + 1e-16


@_native_only
def test_extreme_words_stay_within_nine_and_a_half():
    for radius in (0, 1, 2**63, 2**64 - 1):
        for angle in (0, 2**61 - 1, 2**61, 2**62, 2**63, 2**64 - 1):
            assert max(map(abs, _host().gaussian_pair(radius, angle))) <= 9.5
    assert _host().gaussian_pair(0, 0)[0] > 9.49


def test_shards_draw_what_the_whole_draws():
    whole = ops.gaussian_integers(KEY, 3, 0, 1000, 1e9)
    cuts = [0, 1, 127, 500, 1000]
    parts = [
        ops.gaussian_integers(KEY, 3, begin, end - begin, 1e9)
        for begin, end in itertools.pairwise(cuts)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_keys_steps_and_indices_do_not_share_words():
    other = KEY.flip(0)
    columns = [
        ops.random_words(key, step, first, 2000)
        for key in (KEY, other)
        for step in (0, 1, 2**40, 1 << 56)
        for first in (0, 10**6)
    ]
    assert len(torch.cat(columns).unique()) == 16 * 2000


def test_no_noise_and_no_values():
    assert not ops.gaussian_integers(KEY, 0, 0, 500, 0.0).any()
    assert ops.gaussian_integers(KEY, 0, 5, 0, 1.0).shape == (0,)
    assert ops.random_words(KEY, 0, 200, 0).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((KEY[:31], 0, 0, 1, 1.0), TypeError, "key"),
        ((KEY.long(), 0, 0, 1, 1.0), TypeError, "key"),
        ((KEY.repeat(2)[::2], 0, 0, 1, 1.0), ValueError, "key"),
        ((KEY, -1, 0, 1, 1.0), ValueError, "step"),
        ((KEY, 0, -1, 1, 1.0), ValueError, "first"),
        ((KEY, 0, 0, -1, 1.0), ValueError, "count"),
        ((KEY, 0, 0, 1, -1.0), ValueError, "std"),
        ((KEY, 0, 0, 1, 2.0**59), ValueError, "std"),
        ((KEY, 0, 0, 1, math.nan), ValueError, "std"),
    ],
)
def test_bad_arguments_are_named_and_the_key_is_not_shown(arguments, error, match):
    with pytest.raises(error, match=match) as caught:
        ops.gaussian_integers(*arguments)
    assert "31" not in str(caught.value)


def test_the_registered_operators_are_sound():
    torch.library.opcheck(torch.ops.privimage.random_words, (KEY, 1, 2, 300))
    torch.library.opcheck(torch.ops.privimage.gaussian_integers, (KEY, 1, 2, 300, 1e9))
