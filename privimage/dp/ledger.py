"""The privacy ledger: every touch of sensitive data is on disk here before it happens.

One JSON object a line, each holding the hash of the line before it. What is reserved is spent,
whether or not it was used: a crash can make the ledger overstate ε, never understate it.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from privimage import durable
from privimage.dp import accounting, calibration
from privimage.dp.accounting import Epsilon, Gaussian, Mechanism, SubsampledGaussian
from privimage.errors import UserError, check_count

SCHEMA = "privimage-ledger/1"
_NO_HASH = "0" * 64
_TYPES = {"genesis", "plan", "reserve", "complete"}


@dataclass(frozen=True)
class Plan:
    """What a run may spend; all of it is public."""

    epsilon: float
    delta: float
    query_noise_multiplier: float | None
    finetune: SubsampledGaussian

    @property
    def is_private(self) -> bool:
        """Whether any ε is promised at all."""
        return self.epsilon < float("inf")


class Ledger:
    """The one writer of a run's ledger file; use it as a context manager.

    Formal guarantee: `spent()` covers every release that was ever made under this file, whatever
    crashed in between (tests/dp/test_ledger.py, tests/test_crash.py).
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file at `path` and locks it.

        Raises:
            UserError: another process holds it, it can't be written, or a line of it is damaged.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise durable.cannot_write(path, error) from error
        self.path = path
        try:
            self._lock()
            self._records = list(records(path))
            self._drop_torn_tail()
            if not self._records:
                self._append("genesis", schema=SCHEMA, adjacency=accounting.ADJACENCY)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def head(self) -> str:
        """The hash of the last line: a checkpoint keeps it to prove how old it is."""
        return str(self._records[-1]["hash"])

    def knows(self, head: str) -> bool:
        """Whether `head` is the hash of one of the lines: else this ledger is not its ledger."""
        return any(record["hash"] == head for record in self._records)

    def spent(self) -> list[Mechanism]:
        """Every mechanism reserved so far."""
        return mechanisms(self._records)

    def epsilon(self, delta: float) -> Epsilon:
        """ε of everything reserved so far."""
        return accounting.epsilon(self.spent(), delta)

    @property
    def plan(self) -> Plan | None:
        """The plan in force: the last one recorded."""
        found = plans(self._records)
        return found[-1] if found else None

    def set_plan(self, plan: Plan) -> None:
        """Records what may be spent from here on; the plan in force is not recorded again."""
        if plan != self.plan:
            self._append("plan", **_portable(asdict(plan)))

    def reserve_query(self) -> None:
        """Reserves the planned query; returns when the record is durable.

        Raises:
            UserError: the plan has no query, or the budget can't pay for it.
        """
        plan = self._plan_in_force()
        if plan.query_noise_multiplier is None:
            raise UserError(f"{self.path}: the plan has no query")
        query = Gaussian(plan.query_noise_multiplier)
        if accounting.epsilon([*self.spent(), query], plan.delta).upper > plan.epsilon:
            raise UserError(
                f"{self.path}: the budget of epsilon {plan.epsilon:g} can't pay for another query; "
                "raise --epsilon or begin a new run with --out"
            )
        self._reserve("query", query)

    def completed_query(self, artifact_sha256: str) -> bool:
        """Whether the file with this hash is the result of a query of this ledger."""
        return any(record.get("artifact_sha256") == artifact_sha256 for record in self._records)

    def complete_query(self, artifact_sha256: str) -> None:
        """Records that the reserved query was released, as the file with this hash."""
        self._append("complete", purpose="query", artifact_sha256=artifact_sha256)

    def step_budget(self, wanted: int) -> "StepBudget":
        """An integer gate on `wanted` more fine-tuning steps, or as many as the budget pays for."""
        plan = self._plan_in_force()
        left = 0
        if wanted:
            steps = replace(plan.finetune, steps=wanted)
            left = calibration.affordable_steps(plan.epsilon, plan.delta, steps, self.spent())
        return StepBudget(self, plan.finetune, left)

    def _plan_in_force(self) -> Plan:
        if self.plan is None:
            raise UserError(f"{self.path}: no plan was recorded yet, so nothing may be spent")
        return self.plan

    def _reserve(self, purpose: str, mechanism: Mechanism) -> None:
        self._append("reserve", purpose=purpose, mechanism=_portable(asdict(mechanism)))

    def _append(self, kind: str, **fields: Any) -> None:
        previous = self._records[-1]["hash"] if self._records else _NO_HASH
        record = {"n": len(self._records), "previous": previous, "type": kind, **fields}
        record["hash"] = _hash(record)
        try:
            durable.append_line(self._descriptor, json.dumps(record, sort_keys=True))
        except OSError as error:
            raise durable.cannot_write(self.path, error) from error
        self._records.append(record)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{self.path}: another process is working on this run; wait for it or stop it"
            ) from error

    def _drop_torn_tail(self) -> None:
        """Cuts off a last line whose write never returned: nothing was released under it.

        A whole record is kept even if only its newline is missing or damaged.
        """
        data = self.path.read_bytes()
        whole = b"\n".join(data.split(b"\n")[: len(self._records)])
        whole = whole[: whole.rfind(b"}") + 1]
        if data == (whole + b"\n" if whole else b""):
            return
        os.ftruncate(self._descriptor, len(whole))
        if whole:
            durable.append_line(self._descriptor, "")


class StepBudget:
    """Counts down the steps that may be reserved; the count is exact and in integers."""

    def __init__(self, ledger: Ledger, plan: SubsampledGaussian, left: int) -> None:
        self._ledger = ledger
        self._plan = plan
        self.left = left

    def reserve(self, steps: int) -> None:
        """Reserves `steps`; returns when the record is durable, before any noise is drawn.

        Raises:
            UserError: more than what is left, or the disk refuses the record.
        """
        check_count("steps", steps)
        if steps > self.left:
            raise UserError(f"the privacy budget pays for {self.left} more steps, not {steps}")
        self.left -= steps
        self._ledger._reserve("finetune", replace(self._plan, steps=steps))


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ledger, each checked against the hash chain.

    A last line without its newline is yielded if it is whole, and else passed over.

    Raises:
        UserError: a line is damaged, missing, or of a type or schema this version doesn't know.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: there is no readable ledger ({error.strerror})") from error
    previous = _NO_HASH
    for number, line in enumerate(lines):
        is_tail = number == len(lines) - 1
        record = _parse(line[: line.rfind(b"}") + 1] if is_tail else line)
        if record is None and is_tail:
            return
        if record is None or record.get("n") != number or record.get("previous") != previous:
            raise UserError(
                f"{path}: line {number + 1} is damaged, so ε can't be stated for this run; "
                "restore the file from a backup"
            )
        if record["type"] not in _TYPES or (number == 0) != (record.get("schema") == SCHEMA):
            raise UserError(f"{path}: line {number + 1} is of a version that is not known here")
        previous = record["hash"]
        yield record


def mechanisms(lines: Iterable[dict[str, Any]]) -> list[Mechanism]:
    """The mechanisms that the records `lines` reserve."""
    found: list[Mechanism] = []
    for record in lines:
        if record["type"] == "reserve":
            fields = record["mechanism"]
            found.append(SubsampledGaussian(**fields) if "steps" in fields else Gaussian(**fields))
    return found


def plans(lines: Iterable[dict[str, Any]]) -> list[Plan]:
    """The plans that the records `lines` hold; the last one is in force."""
    return [
        Plan(
            epsilon=float(record["epsilon"]),
            delta=record["delta"],
            query_noise_multiplier=record["query_noise_multiplier"],
            finetune=SubsampledGaussian(**record["finetune"]),
        )
        for record in lines
        if record["type"] == "plan"
    ]


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record in `line`, or None unless it is whole and its hash is right."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("hash") != _hash(record):
        return None
    return record


def _hash(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _portable(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity; the string "inf" stands for it."""
    return {name: "inf" if value == float("inf") else value for name, value in fields.items()}
