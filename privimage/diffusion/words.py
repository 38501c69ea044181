"""Random numbers of many rows at once, each a function of its own row's word alone.

A word's children are the stream of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) that begins at
it: for noise levels, noises and label dropout, not for privacy, since it is not cryptographic. All
of it is arithmetic on tensors, done where they are; a GPU takes one kernel for it, once compiled. A
generator for each row took the host 100 us, about what a GPU takes for a row's gradient.
"""

import math

import torch

_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def children(words: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` children of each word, int64 [..., count]."""
    return child(words[..., None], torch.arange(count, device=words.device))


def child(words: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The children at these places, from 0 on, both int64 and broadcast against each other."""
    # words + _STEP * (places + 1), with no product of places alone: PyTorch's compiler for a GPU
    # takes what is computed from an `arange` for an index, of 32 bits.
    x = (words + (places + 1)) * _STEP + words * (1 - _STEP)
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def uniforms(words: torch.Tensor) -> torch.Tensor:
    """A number in [0, 1) for each word, float32, from its upper 24 bits."""
    return _shifted(words, 40).float() * 2.0**-24


def normals(words: torch.Tensor, count: int) -> torch.Tensor:
    """`count` unit Gaussians for each word, float32 [..., count]; by Box and Muller (1958).

    Those of a word's complement, `~word`, are the same with the opposite sign.
    """
    is_complement = words < 0
    pairs = children(torch.where(is_complement, ~words, words), -(-count // 2))
    # No logarithm is one of 0, so that no value is beyond 6.7.
    squares = (_shifted(pairs, 32) + 1).float() * 2.0**-32
    turns = (pairs & 0xFFFFFFFF).float() * 2.0**-32
    radii, angles = (-2 * squares.log()).sqrt(), 2 * math.pi * turns
    radii = torch.where(is_complement[..., None], -radii, radii)
    return torch.cat([radii * angles.cos(), radii * angles.sin()], dim=-1).narrow(-1, 0, count)


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, zeros coming in."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
