"""Runs one function over the pieces of a batch on several cores, each piece on one torch thread."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from privimage import machine

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Workers:
    """A pool of `threads` workers (default: the machine's cores).

    Small networks leave most of a core idle when torch splits each operator over all cores;
    splitting the batch instead keeps every core busy. Results come in the order of the pieces,
    so that what is computed does not depend on the number of threads.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or machine.cores()
        self._pool = ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        )

    def map(self, function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
        """`[function(piece) for piece in pieces]`, several at a time; the first error is raised."""
        return list(self._pool.map(function, pieces))

    def close(self) -> None:
        """Waits for the workers and ends them."""
        self._pool.shutdown()
