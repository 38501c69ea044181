"""What a private training run may depend on and what it costs, fixed before any data is seen."""

from dataclasses import dataclass, replace

import numpy as np

from privimage.dp.accounting import accountant
from privimage.dp.accounting.calibration import calibrate_noise_multiplier
from privimage.dp.accounting.mechanisms import SubsampledGaussian
from privimage.dp.clipping import ClipRule
from privimage.dp.ledger.records import Plan
from privimage.errors import check_positive


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The public numbers of a `PrivateEngine`; by name, since noise and rate are easily exchanged.

    Attributes:
        noise_multiplier: noise std / `max_grad_norm`; 0 for no privacy.
        sample_rate: probability with which an example enters a step, each by itself.
        steps: of the optimiser, empty batches included.
        max_grad_norm: C, the most by which one example moves a step's sum of gradients.
        clipping: "flat" scales an example's whole gradient to a norm of at most C; "per_layer"
            that of each of L modules to at most C / √L; "automatic" multiplies every gradient by
            C / (its norm + `stability`) (AUTO-S, arXiv 2206.07136).
        stability: γ of automatic clipping, in units of the gradient.
        expected_batch_size: what the noised sum is divided by. None takes `sample_rate` times the
            number of examples, and so declares that number public.

    Raises:
        UserError: a number is out of range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float = 1.0
    clipping: str = "flat"
    stability: float = 0.01
    expected_batch_size: float | None = None

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if isinstance(number, np.generic):  # A ledger takes Python's.
                object.__setattr__(self, name, number.item())
        self.mechanism(self.steps)
        _ = self.rule  # Making it is the check.
        if self.expected_batch_size is not None:
            check_positive("expected_batch_size", self.expected_batch_size)

    @classmethod
    def for_epsilon(
        cls,
        target_epsilon: float,
        delta: float,
        sample_rate: float,
        steps: int,
        max_grad_norm: float = 1.0,
        clipping: str = "flat",
        stability: float = 0.01,
        expected_batch_size: float | None = None,
    ) -> "Privacy":
        """The numbers with the least noise for which all steps cost at most `target_epsilon`.

        The noise multiplier is never below 0.3; `epsilon` says what it really costs.

        Args:
            target_epsilon: upper bound on ε at `delta`; infinite for no privacy.
            delta: in [1e-9, 1e-2], far below 1 / number of examples.
            sample_rate: as above, like all that follow.
            steps: all of which the noise has to pay for.
            max_grad_norm: C.
            clipping: "flat", "per_layer" or "automatic".
            stability: γ of automatic clipping.
            expected_batch_size: None declares the number of examples public.

        Raises:
            UserError: a number is out of range, or no noise is enough.
        """
        without = cls(  # Refuses other mistakes before the search.
            noise_multiplier=0.0,
            sample_rate=sample_rate,
            steps=steps,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            stability=stability,
            expected_batch_size=expected_batch_size,
        )
        found = calibrate_noise_multiplier(target_epsilon, delta, sample_rate, steps)
        return replace(without, noise_multiplier=found)

    def mechanism(self, steps: int) -> SubsampledGaussian:
        """What so many steps release, for the accountant."""
        return SubsampledGaussian(self.sample_rate, self.noise_multiplier, steps)

    @property
    def rule(self) -> ClipRule:
        """How gradients are clipped."""
        return ClipRule(self.max_grad_norm, self.clipping, self.stability)

    def epsilon(self, delta: float) -> float:
        """An upper bound on ε at `delta` of all the steps."""
        return accountant.epsilon([self.mechanism(self.steps)], delta).upper

    def plan(self, delta: float) -> Plan:
        """What a `Ledger` has to know: a budget that pays for exactly these steps."""
        return Plan(self.epsilon(delta), delta, None, self.mechanism(self.steps))

    def goes_on_from(self, earlier: "Privacy") -> bool:
        """Whether both are the same but for the number of steps."""
        return replace(earlier, steps=self.steps) == self
