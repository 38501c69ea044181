"""PyTorch's own random numbers from a seed for a while, and afterwards as before."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_ALONE = RLock()
"""PyTorch has one state for all threads: a second one would take the first one's seed for it."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch's own generators of the CPU and of a device draw from a seed.

    Afterwards they are as before; those of other GPUs always are, and need not even be there. Of
    several threads one is inside at a time.
    """
    others = [device] if device.type == "cuda" else []
    with _ALONE, torch.random.fork_rng(others):
        torch.default_generator.manual_seed(seed)
        for other in others:
            torch.cuda.default_generators[other.index].manual_seed(seed)
        yield
