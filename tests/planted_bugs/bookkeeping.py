"""Bugs in the query, the ledger and the handling of files: what is paid, kept and trusted.

Without a counterpart here, and so not planted: a search for hyper-parameters and early stopping
(there is neither), a δ from the number of images (it is given, and refused if that number is too
large), statistics of the images for their preprocessing (it is a constant).
"""

import os
import pickle
import zipfile

import privacy_checks as checks
import torch

from privimage import durable
from privimage.data import archive
from privimage.dp import History, Ledger
from privimage.dp.accounting import calibration
from privimage.dp.ledger.log import LockedLog
from privimage.dp.ledger.records import QueryReservation
from privimage.dp.ledger.step_budget import StepBudget
from privimage.dp.noise import SecretStream
from privimage.pipeline import stages
from privimage.semantics import query

_integers, _affordable = SecretStream.gaussian_integers, calibration.affordable_steps
_select, _parse, _members = stages.select_semantic, durable.parse_tensors, archive.members
_spent, _reserve, _reserve_query = History.spent, StepBudget.reserve, Ledger.reserve_query
_due_noise_std = query.QuerySettings.noise_std


def _duplicate_votes(logits, votes_per_image):
    return _top(logits, 1).expand(-1, votes_per_image)


_top, _count = query.top_classes, query.count_votes


def _every_row(*arguments):
    counts = _count(*arguments)
    return counts.sum(0, keepdim=True).expand_as(counts)


def _dropped_if_not_finite(logits, votes_per_image):
    chosen = _top(logits, votes_per_image)
    bad = ~logits.isfinite().all(1)
    return torch.where(bad[:, None], chosen[:, :1], chosen)


def _fixed_query_noise(stream, count, std):
    random = torch.Generator().manual_seed(0)
    return (torch.randn(count, generator=random) * std).round().long()


def _nothing_reserved(budget, steps):
    budget.left -= steps


def _reserved_too_late(budget, steps):
    owed = budget.__dict__.pop("owed", 0)
    if owed:
        _reserve(budget, owed)
    budget.__dict__["owed"] = steps


def _reserved_after_the_answer(ledger, *arguments):
    """Notes what is owed and pays it when the result is released."""
    ledger.__dict__["owed"] = arguments


def _unsynced(log, data):
    log._size += len(data)
    os.write(log._descriptor, data)


def _refunded(history):
    completed = any(vars(entry.content).get("artifact_sha256") for entry in history.entries)
    return _spent(history) if completed else []


def _from_nothing(target_epsilon, delta, plan, already_spent=()):
    return _affordable(target_epsilon, delta, plan)


def _rounded(target_epsilon, delta, plan, already_spent=()):
    return _affordable(target_epsilon + 0.05, delta, plan, already_spent)


def _unchecked(budget, steps):
    budget.left = max(budget.left, steps)
    _reserve(budget, steps)


def _from_the_exact_counts(histogram, *others):
    exact = torch.arange(histogram.numel()).view(histogram.shape) * 100
    return _select(exact, *others)


def _unpickled(data):
    try:
        return _parse(data)
    except Exception:
        return pickle.loads(data)  # noqa: S301


def _unpacked(path):
    with zipfile.ZipFile(path) as file:
        file.extractall(path.parent / "unpacked")
    return _members(path)


BUGS = {
    "a class voted for twice": (
        *(query, "top_classes", _duplicate_votes),
        checks.check_query_sensitivity,
    ),
    "votes in every row": (query, "count_votes", _every_row, checks.check_query_sensitivity),
    "fewer votes where logits are NaN": (
        *(query, "top_classes", _dropped_if_not_finite),
        checks.check_query_sensitivity,
    ),
    "query noise without the root of k": (
        *(query.QuerySettings, "noise_std", lambda settings, noise_multiplier: noise_multiplier),
        checks.check_query_noise,
    ),
    "query noise from a fixed seed": (
        *(SecretStream, "gaussian_integers", _fixed_query_noise),
        checks.check_query_noise,
    ),
    "no query noise": (
        SecretStream,
        "gaussian_integers",
        lambda stream, count, std: _integers(stream, count, 0.0),
        checks.check_query_noise,
    ),
    "steps that are not reserved": (
        *(StepBudget, "reserve", _nothing_reserved),
        checks.check_reservations,
    ),
    "steps reserved after they were taken": (
        *(StepBudget, "reserve", _reserved_too_late),
        checks.check_reservations,
    ),
    "the query is not reserved": (
        *(Ledger, "reserve_query", lambda *_: None),
        checks.check_query_is_reserved,
    ),
    "the query is reserved after its answer": (
        *(Ledger, "reserve_query", _reserved_after_the_answer),
        checks.check_query_is_reserved,
    ),
    "a standard deviation cut to whole numbers": (
        query.QuerySettings,
        "noise_std",
        lambda settings, noise: float(int(_due_noise_std(settings, noise))),
        checks.check_query_noise,
    ),
    "a selection from the exact counts": (
        *(stages, "select_semantic", _from_the_exact_counts),
        checks.check_selection,
    ),
    "a cached query that another ledger paid": (
        *(History, "knows", lambda history, head: True),
        checks.check_cached_query,
    ),
    "a cached query that nobody paid": (
        *(History, "completed", lambda history, purpose, digest: True),
        checks.check_cached_query,
    ),
    "a reservation that is not synced": (
        *(LockedLog, "append", _unsynced),
        checks.check_durability,
    ),
    "a reservation refunded after a crash": (History, "spent", _refunded, checks.check_no_refunds),
    "a query left out of ε": (
        History,
        "spent",
        lambda history: [
            entry.content.mechanism
            for entry in history.entries
            if hasattr(entry.content, "mechanism")
            and not isinstance(entry.content, QueryReservation)
        ],
        checks.check_no_refunds,
    ),
    "a resumed run that counts from nothing": (
        *(calibration, "affordable_steps", _from_nothing),
        checks.check_budget,
    ),
    "a budget compared with a rounded ε": (
        *(calibration, "affordable_steps", _rounded),
        checks.check_budget,
    ),
    "steps beyond the budget": (StepBudget, "reserve", _unchecked, checks.check_budget),
    "weights that are unpickled": (
        *(durable, "parse_tensors", _unpickled),
        checks.check_untrusted_weights,
    ),
    "an archive that is unpacked": (archive, "members", _unpacked, checks.check_untrusted_archive),
}
