"""Public randomness: generators that the user's seed reproduces; never used for privacy."""

import hashlib

import torch


def generator(seed: int, *words: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `words` alone.

    A loop that asks for one generator a step, `generator(seed, "pretrain", step)`, repeats itself
    after a resume without any stored random state.
    """
    text = "/".join(str(word) for word in (seed, *words))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
