"""The noise of `reference`: ChaCha20's words and Gaussian integers, bit for bit those of csrc."""

import numpy as np
import torch

_LANES = 16
_SLOTS = 8
_TILE = _LANES * _SLOTS
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)

# Highest power first; the same numbers are in csrc/shared/gaussian.h. Chebyshev interpolants of
# (2 artanh √z / √z - 2) / z, of (sin(π t / 2) / t - π / 2) / t² and of (1 - cos(π t / 2)) / t².
_LOGARITHM = (
    "0x1.2b5f68a50d903p-3 0x1.39fdcceb4bb45p-3 0x1.7462b91b8df65p-3 0x1.c71c62d5e53e0p-3 "
    "0x1.2492492dfd86cp-2 0x1.9999999995273p-2 0x1.5555555555558p-1"
)
_SINE = (
    "0x1.e4a96917f6cc2p-25 -0x1.e3027cee75368p-19 0x1.50783207c0263p-13 -0x1.32d2cce4ffbdep-8 "
    "0x1.466bc6775a473p-4 -0x1.4abbce625be52p-1"
)
_COSINE = (
    "0x1.b2f38468445b5p-28 -0x1.f9ce23426c0b7p-22 0x1.a6d1eef358ff6p-16 -0x1.e1f5068687c82p-11 "
    "0x1.55d3c7e3cb23ap-6 -0x1.03c1f081b5ac0p-2 0x1.3bd3cc9be45dep+0"
)
_LN2 = tuple(map(float.fromhex, ("0x1.62e42fefa2000p-1", "0x1.9ef35793c7673p-41")))
_HALF_PI = tuple(map(float.fromhex, ("0x1.921fb54442d18p+0", "0x1.1a62633145c07p-54")))


def random_words(key: torch.Tensor, step: int, first: int, count: int) -> torch.Tensor:
    """uint8 [32] → int64 [count]; see `privimage.ops.random_words`."""
    low, high = _halves(key, step, first, count)
    return (low | high << 32).flatten()[first % _TILE :][:count]


def gaussian_integers(
    key: torch.Tensor, step: int, first: int, count: int, std: float
) -> torch.Tensor:
    """uint8 [32] → int64 [count]; see `privimage.ops.gaussian_integers`."""
    low, high = (half.view(-1, _SLOTS // 2, 2, _LANES) for half in _halves(key, step, first, count))
    uniform = (high[:, :, 0].double() * 2.0**32 + low[:, :, 0].double() + 0.5) * 2.0**-64
    # NumPy's root, since PyTorch's is not the nearest float64 to the true one (MKL's: 1 % of the
    # results are off in the last place).
    radius = torch.from_numpy(np.sqrt((natural_logarithm(uniform) * -2.0).numpy()))
    # Eighths of a turn are added so that the two highest bits name the nearest quarter.
    turned = (high[:, :, 1] + 2**29) & 0xFFFFFFFF
    fraction = ((turned & (2**30 - 1)) - 2**29).double() * 2.0**32 + low[:, :, 1].double()
    sine, cosine = quarter_sine_cosine(fraction * 2.0**-62)
    quarter = turned >> 30
    along = torch.where(quarter % 2 == 0, cosine, sine)
    across = torch.where(quarter % 2 == 0, sine, cosine)
    along = torch.where((quarter == 1) | (quarter == 2), -along, along)
    across = torch.where(quarter >= 2, -across, across)
    pairs = torch.stack((radius * along, radius * across), dim=2)
    return (pairs * std).round().long().flatten()[first % _TILE :][:count]


def chacha20_blocks(key: torch.Tensor, blocks: torch.Tensor, step: int) -> torch.Tensor:
    """RFC 8439, 2.3, for block numbers int64 [n] → words in int64 [16, n].

    The number's lower half is the counter, its upper half and the step are the nonce.
    """
    words = key.to(blocks.device).view(8, 4).long() << torch.tensor([0, 8, 16, 24])
    fixed = [*_CONSTANTS, *words.sum(dim=1).tolist()]
    after = [blocks & 0xFFFFFFFF, blocks >> 32, step & 0xFFFFFFFF, step >> 32]
    start = [torch.zeros_like(blocks) + word for word in (*fixed, *after)]
    x = list(start)
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter_round(x, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter_round(x, a, b, c, d)
    return torch.stack([(a + b) & 0xFFFFFFFF for a, b in zip(x, start, strict=True)])


def natural_logarithm(u: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of float64 u in [2^-65, 1], as csrc/shared/gaussian.h has it."""
    mantissa, exponent = torch.frexp(u)  # mantissa in [½, 1)
    small = mantissa < float.fromhex("0x1.6a09e667f3bcdp-1")
    f = torch.where(small, 2 * mantissa, mantissa) - 1
    k = (exponent - small.int()).double()
    s = f / (2 + f)
    z = s * s
    return k * _LN2[0] + (f - (s * (f - _polynomial(_LOGARITHM, z) * z) - k * _LN2[1]))


def quarter_sine_cosine(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sin(π t / 2) and cos(π t / 2) for float64 |t| <= ½, as csrc/shared/gaussian.h has them."""
    w = t * t
    sine = t * _HALF_PI[0] + t * (_polynomial(_SINE, w) * w + _HALF_PI[1])
    return sine, 1.0 - _polynomial(_COSINE, w) * w


def _halves(
    key: torch.Tensor, step: int, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper 32 bits of all words in the tiles of these indices: [tiles, slots, lanes]."""
    begin, end = first // _TILE, -(-(first + count) // _TILE)
    words = chacha20_blocks(key, torch.arange(begin * _LANES, end * _LANES), step)
    words = words.view(_SLOTS, 2, -1, _LANES).permute(1, 2, 0, 3)
    return words[0], words[1]


def _quarter_round(x: list[torch.Tensor], a: int, b: int, c: int, d: int) -> None:
    """RFC 8439, 2.1, on 32-bit words in int64."""
    for one, two, three, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[one] = (x[one] + x[two]) & 0xFFFFFFFF
        mixed = x[three] ^ x[one]
        x[three] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF


def _polynomial(coefficients: str, x: torch.Tensor) -> torch.Tensor:
    """Horner's rule, one rounding an operation."""
    highest, *others = map(float.fromhex, coefficients.split())
    value = torch.full_like(x, highest)
    for coefficient in others:
        value = value * x + coefficient
    return value
