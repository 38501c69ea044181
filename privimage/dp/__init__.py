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
from privimage.dp.budget import StepBudget
from privimage.dp.calibration import (
    affordable_steps,
    calibrate_noise_multiplier,
    estimate_noise_multiplier,
)
from privimage.dp.clipping import GRID_UNITS, clipped_sum
from privimage.dp.engine import ExampleGradients
from privimage.dp.history import History
from privimage.dp.joint import JointPromise, compose
from privimage.dp.ledger import Ledger
from privimage.dp.narrative import narrate
from privimage.dp.noise import Domain, SecretKey, SecretStream, generators
from privimage.dp.optimizers import DPSGD, DPAdam, DPAdamW
from privimage.dp.plan import StepPlan, plan
from privimage.dp.recompute import planned_clipped_sum
from privimage.dp.records import Plan, QueryReservation, StepReservation
from privimage.dp.sampling import poisson_sample, rate_threshold
from privimage.dp.verification import Made, Verification, verify

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
    "History",
    "JointPromise",
    "Ledger",
    "Made",
    "Mechanism",
    "Plan",
    "QueryReservation",
    "SecretKey",
    "SecretStream",
    "StepBudget",
    "StepPlan",
    "StepReservation",
    "SubsampledGaussian",
    "Verification",
    "affordable_steps",
    "calibrate_noise_multiplier",
    "check_delta",
    "clipped_sum",
    "compose",
    "epsilon",
    "epsilon_over_steps",
    "estimate_noise_multiplier",
    "generators",
    "group_epsilon",
    "narrate",
    "plan",
    "planned_clipped_sum",
    "poisson_sample",
    "rate_threshold",
    "replace_one_epsilon",
    "verify",
]
