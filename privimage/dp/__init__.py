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
from privimage.dp.noise import gaussian_integers, secret_generator
from privimage.dp.optimizers import DPAdam
from privimage.dp.sampling import poisson_sample, rate_threshold
from privimage.dp.verification import Verification, verify

__all__ = [
    "ADJACENCY",
    "DELTA_RANGE",
    "GRID_UNITS",
    "DPAdam",
    "Epsilon",
    "ExampleGradients",
    "Gaussian",
    "Ledger",
    "Mechanism",
    "Plan",
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
    "gaussian_integers",
    "group_epsilon",
    "poisson_sample",
    "rate_threshold",
    "replace_one_epsilon",
    "secret_generator",
    "verify",
]
