"""PyTorch's own random numbers from a seed for a while, and afterwards as before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch's own generators of the CPU and of a device draw from a seed.

    Afterwards they are as before; those of other GPUs always are, and need not even be there.
    """
    others = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(others):
        torch.default_generator.manual_seed(seed)
        for other in others:
            torch.cuda.default_generators[other.index].manual_seed(seed)
        yield
