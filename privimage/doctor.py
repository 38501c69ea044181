"""Says what is installed and what is missing: versions, native build, cores, memory, GPU."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from privimage import machine, ops
from privimage.dp.gradients.costs import cached_costs

_PACKAGES = ("privimage", "torch", "numpy", "prv-accountant", "safetensors", "pyarrow", "pillow")


def report() -> Iterator[str]:
    """The lines about versions and the machine that `privimage doctor` prints."""
    yield f"python           {platform.python_version()} on {platform.machine()}"
    for package in _PACKAGES:
        yield f"{package:<16} {_version(package)}"
    yield f"native build     {ops.describe_build()}"
    yield f"cores            {machine.cores()}"
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"memory           {gigabytes:.0f} GiB"
    yield f"GPU              {_gpu()}"
    yield f"plan's costs     {_costs()}"


def self_test() -> Iterator[tuple[str, ops.Check]]:
    """Each operator held against its reference, on each kind of device, which is named."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield from ((device, check) for check in ops.self_test(torch.device(device)))


def in_words(device: str, check: ops.Check) -> str:
    """The line about one operator."""
    found = "agrees" if check.agrees else f"DISAGREES by {check.error:.2g}"
    ratio = check.speedup
    pace = f"{ratio:.1f}x as fast" if ratio >= 1 else f"takes {1 / ratio:.1f}x as long"
    return f"self-test {device:<6} {check.name:<24} {found}, {pace} as the reference"


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
        f"value for a norm {1e9 * costs.norm:.2f}, for a sum {1e9 * costs.sum:.2f} and for one of "
        f"outer products {1e9 * costs.outer:.2f} ns, "
        f"product of positions {1e12 * costs.gram:.1f} ps, "
        f"layer {1e6 * costs.layer:.0f} us a micro-batch"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
