"""The secret key and its streams of noise and words: nothing else in DP code may be random.

Where a word comes from: key = HMAC-SHA256(32 bytes from the operating system, run nonce), and then
word(index) = ChaCha20(key, domain · 2^56 + step, index), laid out in csrc/shared/chacha20.h. The
run nonce is drawn afresh with every `SecretKey`, a domain is one purpose, and a stream counts the
steps of its domain up and never back, so no two uses can ever see the same word.
"""

import enum
import hashlib
import hmac
import math
import os
import weakref
from threading import Lock
from typing import NoReturn

import torch

from privimage import ops

_STEP_BITS = 56
TEST_KEY = "PRIVIMAGE_TEST_KEY"
"""The environment variable whose text, if there is one, takes the place of the secret key."""


class Domain(enum.IntEnum):
    """What random words are for; the highest byte of a step's number."""

    UPDATE = 1
    QUERY = 2
    SAMPLING = 3
    EXAMPLES = 4


class SecretKey:
    """A key for one run, in memory only: it has no public bytes, can't be copied or serialised.

    Formal guarantee: the key comes from the operating system's cryptographic generator, never from
    a seed, and no two keys or streams share a word
    (tests/dp/test_noise.py::test_two_keys_share_nothing,
    tests/dp/test_noise.py::test_a_domain_has_one_stream); it is in no state, representation or
    serialised form (tests/dp/test_noise.py::test_a_key_cannot_leave_the_process), and its memory is
    overwritten after its last use
    (tests/dp/test_noise.py::test_a_key_is_overwritten_when_its_last_stream_is_gone). With the
    environment variable PRIVIMAGE_TEST_KEY set there is no guarantee, and `is_secret` says so.

    Attributes:
        is_secret: False for a test key: whatever it touches is not private, and must say so.
    """

    __slots__ = ("_key", "_process", "_taken", "is_secret")

    def __init__(self, secret: bytes, nonce: bytes, is_secret: bool) -> None:
        """For `from_os` alone."""
        memory = bytearray(hmac.digest(secret, nonce, hashlib.sha256))
        self._key = torch.frombuffer(memory, dtype=torch.uint8)
        # When the last stream is gone, or the process ends.
        weakref.finalize(self._key, _overwrite, memory)
        self._process = os.getpid()
        self._taken: set[Domain] = set()
        self.is_secret = is_secret

    @classmethod
    def from_os(cls) -> "SecretKey":
        """A fresh key from the operating system, or the test key of the environment."""
        test = os.environ.get(TEST_KEY)
        if test:
            return cls(hashlib.sha256(test.encode()).digest(), bytes(16), is_secret=False)
        return cls(os.urandom(32), os.urandom(16), is_secret=True)

    def stream(self, domain: Domain) -> "SecretStream":
        """The one stream of this purpose.

        Raises:
            RuntimeError: this is a forked process, and the key its parent's
                (tests/dp/test_noise.py::test_a_forked_process_draws_nothing).
            ValueError: it was handed out before; two users of it would draw the same words.
        """
        _check_process(self._process)
        if domain in self._taken:
            raise ValueError(f"the stream {domain.name} of this key is in use; make another key")
        self._taken.add(domain)
        return SecretStream(self, domain)

    def __repr__(self) -> str:
        return f"SecretKey(is_secret={self.is_secret})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key stays in its process: it can't be copied or serialised")


class SecretStream:
    """The words of one purpose, a step at a time; each step is drawn once, whoever asks for it.

    Formal guarantee: no two draws are of one step, of several threads neither
    (tests/dp/test_noise.py::test_no_two_threads_draw_the_same_noise), nor on several streams of a
    GPU (tests/dp/test_noise.py::test_streams_of_a_gpu_count_one_after_the_other).

    Raises:
        RuntimeError: from every draw in a forked process, whose parent draws the same words
            (tests/dp/test_noise.py::test_a_forked_process_draws_nothing), and after the key was
            overwritten.

    Attributes:
        is_secret: as the key's.
    """

    __slots__ = ("_counted_on", "_counter", "_drawn_to", "_key", "_process", "_turn", "is_secret")

    def __init__(self, key: SecretKey, domain: Domain) -> None:
        """For `SecretKey.stream` alone."""
        self._key = key._key
        self._counter = torch.tensor([int(domain) << _STEP_BITS], device="cpu")
        self._counted_on: torch.cuda.Stream | None = None
        self._drawn_to = math.inf
        self._process = key._process
        self._turn = Lock()
        self.is_secret = key.is_secret

    def words(self, count: int) -> torch.Tensor:
        """The next step's first `count` words of 64 random bits, int64 [count]."""
        return ops.random_words(self._key, self._next(), 0, count)

    def gaussian_integers(self, count: int, std: float) -> torch.Tensor:
        """`count` values of N(0, std²) of the next step, each rounded to the nearest integer.

        Added to an integer sum, the rounding is post-processing of the Gaussian mechanism, since
        rint(c + x) = c + rint(x): the accounting of the unrounded mechanism holds as it is.

        Args:
            count: number of values.
            std: standard deviation, in [0, 2^58]; no value is beyond 9.5 std.

        Returns:
            int64 [count], on the CPU.
        """
        return ops.gaussian_integers(self._key, self._next(), 0, count, std)

    def private_update(
        self,
        clipped_sum: torch.Tensor,
        state: ops.UpdateState,
        rule: ops.UpdateRule | ops.DeviceRule,
        first_index: int = 0,
    ) -> None:
        """`ops.private_update` with the next step's noise; the step is counted on the device.

        A call for parameters that lie behind those of the last call goes on with its step, so that
        the noise is the same however the parameters are divided. Every other call begins a new
        step: no word is ever drawn twice
        (tests/dp/test_noise.py::test_no_two_updates_draw_the_same_noise).
        """
        self._check_key()
        with self._turn:
            self._wait_for_the_count()
            self._counter = self._counter.to(state.parameters.device)
            self._wait_for_the_count()
            goes_on, self._drawn_to = first_index >= self._drawn_to, math.inf
            counter = self._counter - 1 if goes_on else self._counter
            ops.private_update(clipped_sum, self._key, counter, state, rule, first_index)
            self._drawn_to = first_index + len(clipped_sum)

    def __repr__(self) -> str:
        return f"SecretStream(is_secret={self.is_secret})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret stream stays in its process: it can't be copied or serialised")

    def _check_key(self) -> None:
        _check_process(self._process)
        if not self._key.any():
            raise RuntimeError("the key was overwritten, as the process is ending")

    def _wait_for_the_count(self) -> None:
        """On a GPU: has the current stream wait for the one that counted last.

        The count is read when a kernel runs, and of two streams nobody knows which runs first. A
        capture can't wait for what is not captured; it begins when nothing is under way.
        """
        device = self._counter.device
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return
        current = torch.cuda.current_stream(device)
        if self._counted_on is not None and self._counted_on != current:
            current.wait_stream(self._counted_on)
        self._counted_on = current

    def _next(self) -> int:
        self._check_key()
        with self._turn:
            self._wait_for_the_count()
            step = int(self._counter)
            self._counter += 1
            self._drawn_to = math.inf
        return step


def _check_process(made_in: int) -> None:
    """Raises RuntimeError unless this is the process that the key was made in."""
    if os.getpid() != made_in:
        raise RuntimeError(
            "a forked process would draw its parent's words, and so would every other: make the "
            "key, optimiser or engine in the process that uses it"
        )


def _overwrite(memory: bytearray) -> None:
    memory[:] = bytes(len(memory))
