"""How fast work goes on this machine just now: seconds a row, from about a second of it."""

import math
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]

# Rows of the first steps, which must be few where a row takes seconds.
_FEW = 8
_TRIES = 2
# Seconds that one step may take.
_LONGEST = 3.0
# No more than this part of what the work itself will take.
_SHARE = 0.05


class Stopwatch:
    """Times steps of work on `device`, for up to about `seconds` each.

    Attributes:
        spent: seconds that all measurements have taken so far.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.spent = 0.0
        self._wall = self._work = 0.0
        self._device, self._seconds = device, seconds

    def a_row(self, step_of: Callable[[int], Step], rows: int, all_rows: float = math.inf) -> float:
        """Seconds a row, the mean over some steps.

        Args:
            step_of: makes the step that works on so many rows at once.
            rows: of the largest step; fewer where those would take longer than a measurement may.
            all_rows: of the work that is to be foretold; less is measured of little work.
        """
        began, size = time.monotonic(), min(rows, _FEW)
        step = step_of(size)
        # What comes once, such as memory, is left out.
        step()
        found = min(self._timed(step) for _ in range(_TRIES)) / size
        foretold = _SHARE * all_rows * found
        enough = min(self._seconds, foretold)
        # A step of many rows takes no longer than so many steps of one, and mostly far less.
        affordable = int(min(_LONGEST, foretold) / found)
        if size < min(rows, affordable):
            size = min(rows, affordable)
            step = step_of(size)
            step()
            found = self._timed(step) / size
        times, work = [found], time.process_time()
        while time.monotonic() - began < enough:
            times.append(self._timed(step) / size)
        self._work += time.process_time() - work
        self._wall += size * sum(times[1:])
        self.spent += time.monotonic() - began
        return sum(times) / len(times)

    @property
    def cores(self) -> float:
        """How many worked on the steps, on average; others were busy if far fewer than threads."""
        return self._work / self._wall if self._wall else 1.0

    def _timed(self, step: Step) -> float:
        began = time.perf_counter()
        step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began
