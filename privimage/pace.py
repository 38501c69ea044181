"""How fast work goes on this machine just now: seconds a row, from about a second of it."""

import math
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]

# Rows of the first steps, which must be few where a row takes seconds.
_FEW = 8
# No more than this part of what the work itself will take.
_SHARE = 0.05


class Stopwatch:
    """Times steps of work on `device`, for up to about `seconds` each.

    Attributes:
        spent: seconds that all measurements have taken so far.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.spent = 0.0
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
        found = self._timed(step) / size
        enough = min(self._seconds, _SHARE * all_rows * found)
        affordable = min(rows, int(self._seconds / (3 * found)) if found > 0 else rows)
        if affordable > size and found * size < enough:
            size = affordable
            step = step_of(size)
            step()
            found = self._timed(step) / size
        times = [found]
        while time.monotonic() - began < enough:
            times.append(self._timed(step) / size)
        self.spent += time.monotonic() - began
        return sum(times) / len(times)

    def _timed(self, step: Step) -> float:
        began = time.perf_counter()
        step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began
