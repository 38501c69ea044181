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
    costs = cached_costs()
    if costs is None:
        yield "plan's costs     not measured yet (privimage.dp.plan does)"
    else:
        yield (
            f"plan's costs     product {1e12 * costs.multiply_add:.1f} ps, kept value "
            f"{1e9 * costs.keep:.2f} ns, recomputed value {1e9 * costs.recompute:.2f} ns, "
            f"call {1e6 * costs.call:.0f} us"
        )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield f"GPU              {gpu}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
