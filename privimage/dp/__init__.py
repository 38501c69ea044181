"""Differentially private training for any PyTorch project: gradients, noise, accounting, ledger."""

from privimage.dp.accounting import (
    ADJACENCY,
    DELTA_RANGE,
    Epsilon,
    Gaussian,
    Mechanism,
    SubsampledGaussian,
    affordable_steps,
    calibrate_noise_multiplier,
    check_delta,
    epsilon,
)
from privimage.dp.budget import StepBudget
from privimage.dp.clipping import GRID_UNITS, clipped_sum
from privimage.dp.composition import Composition, compose
from privimage.dp.engine import ExampleGradients
from privimage.dp.history import History
from privimage.dp.ledger import Ledger
from privimage.dp.narrative import narrate
from privimage.dp.noise import gaussian_integers, secret_generator
from privimage.dp.optimizers import DPAdam
from privimage.dp.records import Plan, QueryReservation, StepReservation
from privimage.dp.sampling import poisson_sample, rate_threshold
from privimage.dp.verification import Made, Verification, verify

__all__ = [
    "ADJACENCY",
    "DELTA_RANGE",
    "GRID_UNITS",
    "Composition",
    "DPAdam",
    "Epsilon",
    "ExampleGradients",
    "Gaussian",
    "History",
    "Ledger",
    "Made",
    "Mechanism",
    "Plan",
    "QueryReservation",
    "StepBudget",
    "StepReservation",
    "SubsampledGaussian",
    "Verification",
    "affordable_steps",
    "calibrate_noise_multiplier",
    "check_delta",
    "clipped_sum",
    "compose",
    "epsilon",
    "gaussian_integers",
    "narrate",
    "poisson_sample",
    "rate_threshold",
    "secret_generator",
    "verify",
]
