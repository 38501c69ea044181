"""What a product and a layer cost on this machine: measured once, for `privimage.dp.plan`.

On a GPU for bfloat16 activations, in calls one by one between events: a captured step has less to
pay for a layer, so the plan there keeps a small one rather than compute it twice.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from privimage import durable, ops
from privimage.dp.gradients.chance import seeded
from privimage.dp.gradients.engine import ExampleGradients
from privimage.errors import UserError

_CPU = torch.device("cpu")
_ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)
_THREE_TAPS = ((1, 1), (1, 1), (1, 1), 1)


@dataclass(frozen=True)
class Costs:
    """Constants of the cost model, in seconds on all threads, or of a GPU.

    Attributes:
        multiply_add: one product of a weight gradient.
        keep: what a value that is kept costs beside its products: written and measured, and read
            for the sum.
        norm: what a value costs beside its products that is computed for its norm alone.
        sum: likewise for the sum alone.
        outer: what a value costs for the sum, its product included, of a layer that each example
            goes through once.
        gram: one product of two positions' values, or a tap of one.
        layer: what a layer costs in a micro-batch beside its arithmetic, forward and back.
    """

    multiply_add: float
    keep: float
    norm: float
    sum: float
    outer: float
    gram: float
    layer: float


def machine_costs(device: torch.device = _CPU) -> Costs:
    """Those of this machine: read from the user's cache folder, or measured, in half a second.

    Other threads, another build or another CPU or GPU are measured anew.
    """
    found = cached_costs(device)
    if found is None:
        found = measure_costs(device)
        path = cache_path(device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(path, {"machine": _machine(device), "costs": asdict(found)})
        except (OSError, UserError):
            pass  # A cache that can't be written costs half a second the next time.
    return found


def cached_costs(device: torch.device = _CPU) -> Costs | None:
    """Those in the cache folder, if they are this machine's."""
    try:
        record = durable.read_json(cache_path(device))
        return Costs(**record["costs"]) if record["machine"] == _machine(device) else None
    except (UserError, KeyError, TypeError):
        return None


def cache_path(device: torch.device = _CPU) -> Path:
    """Where they are kept; $XDG_CACHE_HOME or ~/.cache decides."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = "costs.json" if device.type == "cpu" else f"costs-{device.type}.json"
    return Path(folder) / "privimage" / name


def measure_costs(device: torch.device = _CPU) -> Costs:
    """Times a convolution, wide linear layers, and layers with nothing to do."""
    if device.type == "cuda":
        with torch.cuda.device(device), device:  # Events are of the stream of the current one.
            return _measured(128)
    if torch.get_default_device() == device:  # Said once more, it costs every call some time.
        return _measured(8)
    with device:
        return _measured(8)


def _measured(examples: int) -> Costs:
    """On the default device, which so many examples fill."""
    width, layers = 64, 16
    images = torch.ones(examples, width, 16, 16).contiguous(memory_format=torch.channels_last)
    images = images.to(_activations())
    products = examples * 16 * 16 * 9 * width * width
    large = _seconds(
        lambda: ops.example_weight_norms(images, images, examples, (3, 3), False, _THREE_TAPS)
    )
    with seeded(0, images.device):
        pairs = [(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)) for _ in range(layers // 2)]
    chain = nn.Sequential(*(layer for pair in pairs for layer in pair))
    gradients, point = ExampleGradients(chain, torch.channels_last), torch.ones(1, 8, 2, 2)
    small = _seconds(lambda: gradients(lambda model, x: model(x).sum((1, 2, 3)), point))
    x, wide = torch.ones(examples, 1024, 1, 1, dtype=_activations()), 1024 * 1024
    twice = torch.ones(examples, 1024, 1, 2, dtype=_activations())
    twice = twice.contiguous(memory_format=torch.channels_last)
    rows = torch.empty(examples, 1024, 1024, 1, 1)
    scales, total = torch.ones(examples).double(), torch.zeros(1024, 1024, 1, 1, dtype=torch.int64)
    maps = torch.ones(examples, 256, 8, 8).contiguous(memory_format=torch.channels_last)

    def keep() -> None:
        squares = ops.measured_weight_grads([x], [x], [rows], [], _ONE_TAP)
        ops.scaled_sum(rows.flatten(1), squares, total.flatten())

    def sums(x: torch.Tensor) -> float:
        return _seconds(lambda: ops.recomputed_sum(x, x, scales, total, None, _ONE_TAP, False))

    norm = _seconds(lambda: ops.example_weight_norms(x, x, examples, (1, 1), False, _ONE_TAP))
    gram = _seconds(lambda: ops.gram_sums(maps, maps, examples, (3, 3), False, _THREE_TAPS))
    product = large / products

    def beside(seconds: float, products: int = 1) -> float:
        """What a value costs beside its products."""
        return max(seconds / (examples * wide) - products * product, 0.0)

    return Costs(
        multiply_add=product,
        keep=beside(_seconds(keep)),
        norm=beside(norm),
        sum=beside(sums(twice), products=2),
        outer=sums(x) / (examples * wide),
        gram=gram / (examples * 64**2 * (256 + 256 + 9)),
        layer=small / layers,
    )


def _activations() -> torch.dtype:
    """What layers compute in on the default device."""
    return torch.float32 if torch.get_default_device().type == "cpu" else torch.bfloat16


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of ten calls: what other processes take does not count."""
    clock = _on_cpu if torch.get_default_device().type == "cpu" else _on_gpu
    return min(clock(run) for _ in range(10))


def _on_cpu(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _on_gpu(run: Callable[[], object]) -> float:
    """Between events in the stream, so that nobody waits for the host but where kernels do."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def _machine(device: torch.device) -> str:
    """What the figures depend on."""
    if device.type == "cpu":
        threads = f"{torch.get_num_threads()} threads"
        return ", ".join([platform.node(), platform.machine(), threads, ops.describe_build()])
    return ", ".join([platform.node(), torch.cuda.get_device_name(device), ops.describe_build()])
