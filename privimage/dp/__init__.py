"""Differentially private training for any PyTorch project: gradients, noise, accounting, ledger."""

from privimage.dp.accounting.accountant import (
    check_delta,
    epsilon,
    epsilon_over_steps,
    group_epsilon,
    replace_one_epsilon,
)
from privimage.dp.accounting.calibration import (
    affordable_steps,
    calibrate_noise_multiplier,
    estimate_noise_multiplier,
)
from privimage.dp.accounting.mechanisms import (
    Epsilon,
    Gaussian,
    Mechanism,
    SubsampledGaussian,
)
from privimage.dp.clipping import (
    GRID_UNITS,
    ClipRule,
    clipped_sum,
)
from privimage.dp.gradients.engine import ExampleGradients
from privimage.dp.gradients.independence import check_independence
from privimage.dp.gradients.micro_batch import most_examples, usual_memory
from privimage.dp.gradients.plan import StepPlan, plan
from privimage.dp.gradients.recompute import planned_clipped_sum
from privimage.dp.ledger.history import History
from privimage.dp.ledger.joint import JointPromise, compose
from privimage.dp.ledger.ledger import Ledger
from privimage.dp.ledger.narrative import narrate
from privimage.dp.ledger.records import (
    UNITS,
    Plan,
    QueryReservation,
    Selftest,
    StepReservation,
    adjacency,
)
from privimage.dp.ledger.step_budget import StepBudget
from privimage.dp.ledger.verification import Made, Verification, verify
from privimage.dp.noise import Domain, SecretKey, SecretStream
from privimage.dp.optimizers import DPSGD, DPAdam, DPAdamW
from privimage.dp.poisson_loader import PoissonLoader
from privimage.dp.privacy import Privacy
from privimage.dp.private_engine import PrivateEngine
from privimage.dp.rules.registry import register_rule, watched
from privimage.dp.sampling import poisson_sample, rate_threshold
from privimage.recording import record

__all__ = [
    "DPSGD",
    "GRID_UNITS",
    "UNITS",
    "ClipRule",
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
    "PoissonLoader",
    "Privacy",
    "PrivateEngine",
    "QueryReservation",
    "SecretKey",
    "SecretStream",
    "Selftest",
    "StepBudget",
    "StepPlan",
    "StepReservation",
    "SubsampledGaussian",
    "Verification",
    "adjacency",
    "affordable_steps",
    "calibrate_noise_multiplier",
    "check_delta",
    "check_independence",
    "clipped_sum",
    "compose",
    "epsilon",
    "epsilon_over_steps",
    "estimate_noise_multiplier",
    "group_epsilon",
    "most_examples",
    "narrate",
    "plan",
    "planned_clipped_sum",
    "poisson_sample",
    "rate_threshold",
    "record",
    "register_rule",
    "replace_one_epsilon",
    "usual_memory",
    "verify",
    "watched",
]
