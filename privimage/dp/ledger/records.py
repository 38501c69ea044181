"""What a line of the ledger can say: one frozen dataclass a kind, to JSON and strictly back."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from privimage.dp.accounting.accountant import check_delta
from privimage.dp.accounting.mechanisms import Gaussian, SubsampledGaussian
from privimage.dp.sampling import rate_threshold
from privimage.errors import UserError, check_choice, check_count, check_non_negative

SCHEMA = "privimage-ledger/2"
"""Changes when a record gets another meaning or other fields; a new kind of record needs no new
version: who does not know it refuses the ledger, and every older ledger stays readable."""
UNITS = ("image", "person")
"""Whom ε can protect."""
PURPOSES = ("query", "finetune", "synthetic")


def adjacency(unit: str) -> str:
    """The neighbouring relation of every statement: one unit (image or person) more or less."""
    return f"add_remove_one_{unit}"


@dataclass(frozen=True)
class Genesis:
    """The first line: of which version the ledger is, and whom its ε protects."""

    KIND: ClassVar[dict[str, str]] = {"type": "genesis"}

    unit: str
    adjacency: str
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        check_choice("adjacency", self.adjacency, [adjacency(self.unit)])
        check_choice("schema", self.schema, [SCHEMA])


@dataclass(frozen=True)
class Plan:
    """What a run may spend; all of it is public.

    Attributes:
        epsilon: the budget; infinite for none.
        delta: the δ at which it is stated.
        query_noise_multiplier: σ_q = noise std / L2 sensitivity; None if nothing is asked.
        finetune: sample rate, σ and number of the DP-SGD steps.
        sample_rate_threshold: the sampler's integer (`rate_threshold`) in decimals; by default that
            of `finetune.sample_rate`.
    """

    KIND: ClassVar[dict[str, str]] = {"type": "plan"}

    epsilon: float
    delta: float
    query_noise_multiplier: float | None
    finetune: SubsampledGaussian
    sample_rate_threshold: str = ""

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise UserError(f"epsilon must be above 0, got {self.epsilon}")
        check_delta(self.delta)
        if self.query_noise_multiplier is not None:
            check_non_negative("query_noise_multiplier", self.query_noise_multiplier)
        if not self.sample_rate_threshold:
            threshold = str(rate_threshold(self.finetune.sample_rate))
            object.__setattr__(self, "sample_rate_threshold", threshold)

    @property
    def is_private(self) -> bool:
        """Whether any ε is promised at all."""
        return self.epsilon < math.inf

    def in_words(self, unit: str) -> str:
        """What may be spent for one `unit`, and on what."""
        if not self.is_private:
            return "no privacy: ε is infinite"
        noise, steps = self.query_noise_multiplier, self.finetune
        query = "" if noise is None else f"query σ {noise:g}; "
        return (
            f"ε ≤ {self.epsilon:g} at δ = {self.delta} for one {unit}: {query}{steps.steps} steps "
            f"at rate {steps.sample_rate:.4g}, σ {steps.noise_multiplier:g}"
        )


@dataclass(frozen=True)
class QueryReservation:
    """One noisy histogram, spent from here on.

    Attributes:
        mechanism: σ_q = noise std / L2 sensitivity.
        votes_per_image: k1; one image changes k1 counts by 1, and a person's votes are clipped to
            the norm of that, so the sensitivity is √k1 for either unit.
        noise_std: standard deviation of the noise on each count: σ_q · √k1.
        nonce: 64 random bits: no two reservations, and so no two heads after one, are ever equal,
            not even in a ledger that was rolled back and went on.
    """

    KIND: ClassVar[dict[str, str]] = {"type": "reserve", "purpose": "query"}

    mechanism: Gaussian
    votes_per_image: int
    noise_std: float
    nonce: str

    def __post_init__(self) -> None:
        check_count("votes_per_image", self.votes_per_image)
        check_non_negative("noise_std", self.noise_std)
        _check_hexadecimal(self.nonce, 16)

    @property
    def due_noise_std(self) -> float:
        """What `noise_std` must be for the sensitivity of these votes."""
        return self.mechanism.noise_multiplier * math.sqrt(self.votes_per_image)


@dataclass(frozen=True)
class StepReservation:
    """The optimiser's steps `first_step` … `first_step + mechanism.steps - 1`, spent from here on.

    `sample_rate_threshold` is as in `Plan`, `nonce` as in `QueryReservation`.
    """

    KIND: ClassVar[dict[str, str]] = {"type": "reserve", "purpose": "finetune"}

    mechanism: SubsampledGaussian
    first_step: int
    sample_rate_threshold: str
    nonce: str

    def __post_init__(self) -> None:
        check_count("first_step + 1", self.first_step + 1)
        _check_hexadecimal(self.nonce, 16)


@dataclass(frozen=True)
class Completion:
    """A released file; `steps` is how many a fine-tuned network has taken, else None."""

    KIND: ClassVar[dict[str, str]] = {"type": "complete"}

    purpose: str
    artifact_sha256: str
    steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("purpose", self.purpose, PURPOSES)
        _check_hexadecimal(self.artifact_sha256, 64)
        if (self.steps is None) == (self.purpose == "finetune"):
            raise ValueError("steps are for fine-tuning, and only for it")
        if self.steps is not None:
            check_count("steps", self.steps)


@dataclass(frozen=True)
class NotPrivate:
    """From here on nothing is promised for anything of this ledger, for this `reason`."""

    KIND: ClassVar[dict[str, str]] = {"type": "not_private"}

    reason: str

    def __post_init__(self) -> None:
        _check_text(self.reason)


@dataclass(frozen=True)
class OutsideEpsilon:
    """Something was computed on sensitive data without noise; the ε does not cover it."""

    KIND: ClassVar[dict[str, str]] = {"type": "nonprivate"}

    what: str

    def __post_init__(self) -> None:
        _check_text(self.what)


@dataclass(frozen=True)
class Selftest:
    """Noise, sampling and clipping were checked on the machine of this run; costs nothing.

    Attributes:
        version: of privimage.
        torch: version of torch.
        build: of the native operators, `ops.describe_build()`.
        device: on which the checks ran.
        failed: the names of the checks that failed; empty if all passed.
    """

    KIND: ClassVar[dict[str, str]] = {"type": "selftest"}

    version: str
    torch: str
    build: str
    device: str
    failed: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.failed, str):
            raise TypeError("a list of names is needed")
        object.__setattr__(self, "failed", tuple(self.failed))
        for text in (self.version, self.torch, self.build, self.device, *self.failed):
            _check_text(text)


Reservation = QueryReservation | StepReservation
"""What spends."""

Content = Genesis | Plan | Reservation | Completion | NotPrivate | OutsideEpsilon | Selftest
# The fields that are objects in JSON, and what they are here.
_NESTED: dict[type[Any], dict[str, type[Any]]] = {
    Plan: {"finetune": SubsampledGaussian},
    QueryReservation: {"mechanism": Gaussian},
    StepReservation: {"mechanism": SubsampledGaussian},
}


def to_fields(content: Content) -> dict[str, Any]:
    """The JSON object of `content`; JSON has no infinity, the string "inf" stands for it."""
    nested = _NESTED.get(type(content), {})
    fields = {name: "inf" if value == math.inf else value for name, value in vars(content).items()}
    return {**content.KIND, **fields, **{name: vars(fields[name]) for name in nested}}


def from_fields(fields: dict[str, Any]) -> Content:
    """The inverse of `to_fields`.

    Raises:
        UserError, TypeError, ValueError: a kind or field that is unknown, missing or impossible.
    """
    kind: type[Any]
    kinds: tuple[type[Content], ...] = get_args(Content)
    for kind in kinds:
        if all(fields.get(name) == value for name, value in kind.KIND.items()):
            rest = {name: value for name, value in fields.items() if name not in kind.KIND}
            for name, nested in _NESTED.get(kind, {}).items():
                rest[name] = nested(**rest.get(name, {}))
            if kind is Plan and rest.get("epsilon") == "inf":
                rest["epsilon"] = math.inf
            return kind(**rest)
    raise ValueError(f"a record of an unknown kind: {fields.get('type')}")


def _check_hexadecimal(text: str, digits: int) -> None:
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        raise ValueError(f"not {digits} hexadecimal digits: {text}")


def _check_text(text: str) -> None:
    if not (isinstance(text, str) and text.strip() and text.isprintable()):
        raise ValueError("a line of text is needed")
