"""Finds what is wrong with a run before anything is touched, spent or computed."""

import math
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from privimage import data, machine
from privimage.data.formats import lies_in_set, share_images
from privimage.errors import UserError
from privimage.pipeline import measurement
from privimage.recipe import DataSettings
from privimage.run.context import Run
from privimage.semantics.query import check_votes
from privimage.semantics.selection import check_enough_classes

PRIVATE = frozenset({"query", "finetune"})
"""The stages that see sensitive images."""
_LEAST_FREE_BYTES = 200 * 2**20


def check(run: Run, missing: Collection[str]) -> None:
    """Finds what is wrong with recipe, public data, disk and declarations before any privacy cost.

    Raises:
        UserError: says what.
    """
    settings, names = run.recipe.data, {*missing}
    outside = run.recipe.evaluation
    needs_sensitive = (
        bool(PRIVATE & names)
        or not run.folder.is_declared
        or ("evaluation" in names and (outside.ceiling or outside.sensitive_duplicates))
    )
    if needs_sensitive and not settings.sensitive:
        raise UserError("no sensitive images given; name them with --sensitive PATH")
    if run.recipe.selection.mode != "none" and not settings.public:
        raise UserError(
            "no public images given; name them with --public PATH, or use --selection none"
        )
    refuse_sensitive_as_public(settings)
    _refuse_run_in_set(settings, run.folder.path)
    _check_disk(run.folder.path)
    if kind := machine.network_file_system(run.folder.path):
        run.reporter.warn(
            f"{run.folder.path} is on a network file system ({kind}), where the ledger's lock and "
            "its writes may not hold; start the run on one machine only, or use a local disk"
        )
    if needs_sensitive:
        data.check_source("--sensitive", settings.sensitive, settings.person_key)
    if {"classifier", "pretrain"} & names or ("evaluation" in names and outside.near_duplicates):
        data.check_source("--public", settings.public)
    # What the run will be measured on must be right before it spends, whoever does that later.
    is_measured = "evaluation" in names or (bool(PRIVATE & names) and bool(settings.test))
    if is_measured:
        data.check_source("--test", settings.test)
    if PRIVATE & names or not run.folder.is_declared:
        _declare(run)
        # Building the shape is the check.
        _ = run.network_shape
    if {"classifier", "pretrain"} & names:
        # Loading is the check: an empty, unlabelled or one-class set is refused here.
        len(run.public)
    if run.recipe.selection.mode == "semantic" and "query" in names:
        classes = len(run.public.names if "classifier" in names else run.public_names)
        check_votes(run.recipe.query, classes)
        labels = max(len(run.names), 1)
        check_enough_classes(labels, classes, run.recipe.selection.classes_per_label)
    if is_measured:
        _check_evaluation(run)


def refuse_sensitive_as_public(settings: DataSettings) -> None:
    """Raises UserError if images of the sensitive set are also given as some that are public."""
    for option, source in (("--public", settings.public), ("--test", settings.test)):
        if source and settings.sensitive and share_images(source, settings.sensitive):
            raise UserError(
                f"{option}: '{source}' is the sensitive set itself, or has files or folders of it, "
                "and no ε covers what is computed on public images; give others, or keep some "
                "apart from --sensitive"
            )


def _refuse_run_in_set(settings: DataSettings, path: Path) -> None:
    """Refuses a run folder that the next run would read as a class of an image set."""
    sets = (
        ("--sensitive", settings.sensitive),
        ("--public", settings.public),
        ("--test", settings.test),
    )
    for option, source in sets:
        if source and lies_in_set(path, source):
            raise UserError(
                f"--out: '{path}' lies in the image set {option} '{source}', and would be read as "
                "images of it; choose a folder outside (a run that has begun can be moved there)"
            )


def _check_evaluation(run: Run) -> None:
    """Loading is the check, of the test images and of the features' weights."""
    settings = run.recipe.evaluation
    if run.recipe.data.test:
        len(run.test)
        if settings.features:
            measurement.load_features(run)
    elif settings.ceiling:
        raise UserError("evaluation.ceiling needs images to test on; name them with --test PATH")


def _declare(run: Run) -> None:
    """Writes down what is public about the sensitive set, and checks δ against its size."""
    settings, privacy = run.recipe.data, run.recipe.privacy
    size, delta = settings.public_size or len(run.sensitive.by_unit()), privacy.delta
    if delta >= 1 / size:
        raise UserError(
            f"delta is {delta:g}, but must lie below 1 / {size} (one over the number of sensitive "
            f"{privacy.unit}s): give --delta, such as {1 / (size * math.log(max(size, 3))):.0e}"
        )
    run.declared = {
        "names": list(run.sensitive.names),
        "public_size": size,
        "public_size_was_declared": settings.public_size > 0,
        "unit": privacy.unit,
        "person": settings.person,
    }


def _check_disk(path: Path) -> None:
    """Refuses a folder that can't be created or has no room, before any work is done for it."""
    parent = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not parent.is_dir():
        raise UserError(f"{path}: '{parent}' is a file, not a folder; choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: no permission to write in '{parent}'; choose another --out")
    if shutil.disk_usage(parent).free < _LEAST_FREE_BYTES:
        raise UserError(
            f"{path}: less than {_LEAST_FREE_BYTES >> 20} MB free on its disk; make room there, or "
            "choose another --out"
        )
