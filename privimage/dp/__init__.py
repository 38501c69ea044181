"""Differentially private training for any PyTorch project: gradients, noise, accounting, ledger."""

from privimage.dp.accounting import (
    ADJACENCY,
    DELTA_RANGE,
    Epsilon,
    Gaussian,
    Mechanism,
    SubsampledGaussian,
    check_delta,
    epsilon,
    epsilon_over_steps,
    group_epsilon,
    replace_one_epsilon,
)
from privimage.dp.calibration import (
    affordable_steps,
    calibrate_noise_multiplier,
    estimate_noise_multiplier,
)
from privimage.dp.clipping import GRID_UNITS, clipped_sum
from privimage.dp.engine import ExampleGradients
from privimage.dp.ledger import Ledger, Plan, StepBudget
from privimage.dp.noise import Domain, SecretKey, SecretStream, generators
from privimage.dp.optimizers import DPSGD, DPAdam, DPAdamW
from privimage.dp.sampling import poisson_sample, rate_threshold
from privimage.dp.verification import Verification, verify

__all__ = [
    "ADJACENCY",
    "DELTA_RANGE",
    "DPSGD",
    "GRID_UNITS",
    "DPAdam",
    "DPAdamW",
    "Domain",
    "Epsilon",
    "ExampleGradients",
    "Gaussian",
    "Ledger",
    "Mechanism",
    "Plan",
    "SecretKey",
    "SecretStream",
    "StepBudget",
    "SubsampledGaussian",
    "Verification",
    "affordable_steps",
    "calibrate_noise_multiplier",
    "check_delta",
    "clipped_sum",
    "epsilon",
    "epsilon_over_steps",
    "estimate_noise_multiplier",
    "generators",
    "group_epsilon",
    "poisson_sample",
    "rate_threshold",
    "replace_one_epsilon",
    "verify",
]
