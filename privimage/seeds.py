"""Public randomness: generators that the user's seed reproduces; never used for privacy."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *words: str | int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `words` alone.

    A loop that asks for one generator a step, `generator(seed, "pretrain", step)`, repeats itself
    after a resume without any stored random state.
    """
    text = "/".join(str(word) for word in (seed, *words))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Inside, networks are made on the CPU and draw their parameters from `seed`.

    They draw from the generator that all threads share, so whoever has threads makes networks in
    one of them; afterwards that generator is as before, and no GPU's is touched.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
