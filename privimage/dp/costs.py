"""What keeping a gradient costs on this machine, and what computing it again: measured once."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from privimage import durable, ops
from privimage.errors import UserError

_ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)
_THREE_TAPS = ((1, 1), (1, 1), (1, 1), 1)


@dataclass(frozen=True)
class Costs:
    """Constants of the cost model of `privimage.dp.plan`, in seconds on all threads.

    Attributes:
        multiply_add: one product of a weight gradient.
        keep: writing a value into an arena larger than the caches, and reading it twice.
        recompute: what a value costs that is computed again, beside its products.
        call: of an operator, whatever it does.
    """

    multiply_add: float
    keep: float
    recompute: float
    call: float


def machine_costs() -> Costs:
    """Those of this machine: read from the user's cache folder, or measured, in a second or two.

    Other threads, another build or another CPU are measured anew.
    """
    found = cached_costs()
    if found is None:
        found = measure_costs()
        path = cache_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(path, {"machine": _machine(), "costs": asdict(found)})
        except (OSError, UserError):
            pass  # A cache that can't be written costs a second the next time.
    return found


def cached_costs() -> Costs | None:
    """Those in the cache folder, if they are this machine's."""
    try:
        record = durable.read_json(cache_path())
        return Costs(**record["costs"]) if record["machine"] == _machine() else None
    except (UserError, KeyError, TypeError):
        return None


def cache_path() -> Path:
    """Where they are kept; $XDG_CACHE_HOME or ~/.cache decides."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "privimage" / "costs.json"


def measure_costs() -> Costs:
    """Times the operators themselves: one large layer, many layers of one pixel, one of nothing."""
    examples, width, layers = 8, 128, 64
    x = torch.ones(examples, width, 1, 1)
    arena = torch.zeros(examples, layers * width * width)
    columns = arena.view(examples, layers, width, width, 1, 1)
    scales = torch.ones(examples, dtype=torch.float64)
    total = torch.zeros(width, width, 1, 1, dtype=torch.int64)

    def keep() -> None:
        for layer in range(layers):
            ops.example_weight_grad(x, x, columns[:, layer], None, _ONE_TAP)
        ops.squared_norms(arena)
        ops.scaled_sum(arena, scales)

    def recompute() -> None:
        for _ in range(layers):
            ops.example_weight_norms(x, x, examples, (1, 1), False, _ONE_TAP)
            ops.recomputed_sum(x, x, scales, total, None, _ONE_TAP)

    point = torch.ones(1, 1, 1, 1)
    call = _seconds(lambda: ops.example_weight_norms(point, point, 1, (1, 1), False, _ONE_TAP))
    images = torch.ones(examples, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    large = _seconds(
        lambda: ops.example_weight_norms(images, images, examples, (3, 3), False, _THREE_TAPS)
    )
    return Costs(
        multiply_add=large / (examples * 256 * 9 * 64 * 64),
        keep=max(_seconds(keep) - layers * call, 0.0) / arena.numel(),
        recompute=max(_seconds(recompute) - 2 * layers * call, 0.0) / arena.numel(),
        call=call,
    )


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of twenty calls: what other processes take does not count."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _machine() -> str:
    """What the figures depend on."""
    threads = f"{torch.get_num_threads()} threads"
    return ", ".join([platform.node(), platform.machine(), threads, ops.describe_build()])
