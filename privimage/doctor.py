"""Says what is installed and what is missing: versions, native build, cores, memory, GPU."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from privimage import ops
from privimage.dp.costs import cached_costs

_PACKAGES = ("privimage", "torch", "numpy", "prv-accountant", "safetensors", "pyarrow", "pillow")


def report() -> Iterator[str]:
    """The lines that `privimage doctor` prints."""
    yield f"python           {platform.python_version()} on {platform.machine()}"
    for package in _PACKAGES:
        yield f"{package:<16} {_version(package)}"
    yield f"native build     {ops.describe_build()}"
    yield f"cores            {len(os.sched_getaffinity(0))}"
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"memory           {gigabytes:.0f} GiB"
    yield f"GPU              {_gpu()}"
    yield f"plan's costs     {_costs()}"
    yield from _self_test(torch.device("cpu"))
    if torch.cuda.is_available():
        yield from _self_test(torch.device("cuda"))


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"


def _costs() -> str:
    costs = cached_costs()
    if costs is None:
        return "not measured yet (privimage.dp.plan does)"
    return (
        f"product {1e12 * costs.multiply_add:.1f} ps, kept value {1e9 * costs.keep:.2f} ns, "
        f"value again {1e9 * costs.again:.2f} ns, layer {1e6 * costs.layer:.0f} us a micro-batch"
    )


def _self_test(device: torch.device) -> Iterator[str]:
    """The operators held against the reference; a line each."""
    for check in ops.self_test(device):
        found = (
            "agrees" if check.agrees else f"DISAGREES by {check.error:.2g}: don't use this build"
        )
        yield f"self-test {device.type:<6} {check.name:<20} {found}, {check.speedup:.1f}x as fast"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
