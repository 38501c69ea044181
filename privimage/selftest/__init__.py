"""Checks noise, sampling and clipping on the machine, device and build that a run would use."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic

import torch

from privimage import ops
from privimage.dp import Selftest
from privimage.selftest.checks import CHECKS, Broken, check_operators

__all__ = ["CHECKS", "Broken", "Outcome", "check_operators", "record", "run"]


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        name: of the check.
        promise: what it checks, a sentence.
        problem: what is wrong; empty if nothing is.
        seconds: how long it took.
    """

    name: str
    promise: str
    problem: str
    seconds: float


def run(device: torch.device) -> Iterator[Outcome]:
    """Runs all `CHECKS` on `device`, one after the other: some seconds on one core."""
    for name, check in CHECKS.items():
        began, problem = monotonic(), ""
        try:
            check(device)
        except Exception as error:  # Whatever a broken build raises is a finding.
            problem = " ".join(str(error).split()) or type(error).__name__
        promise = (check.__doc__ or "").splitlines()[0]
        yield Outcome(name, promise, problem, monotonic() - began)


def record(outcomes: Sequence[Outcome], device: torch.device) -> Selftest:
    """What a ledger keeps of `outcomes`: versions, build, device and the names of what failed."""
    is_gpu = device.type == "cuda"
    return Selftest(
        version=version("privimage"),
        torch=str(torch.__version__),
        build=ops.describe_build(),
        device=torch.cuda.get_device_name(device) if is_gpu else f"cpu, {platform.machine()}",
        failed=tuple(outcome.name for outcome in outcomes if outcome.problem),
    )
