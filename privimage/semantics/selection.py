"""Keeps the public classes that the sensitive labels resemble most; sees the noisy counts only.

After the noisy histogram everything is post-processing: nothing here costs privacy.
"""

from dataclasses import dataclass

import torch

from privimage.errors import UserError, check_choice, check_count

MODES = ("semantic", "all", "none")
_FALSE_ALARM = 0.05


@dataclass(frozen=True)
class SelectionSettings:
    """`mode` semantic (PrivImage), all (PDP-Diffusion) or none (DPDM: no pre-training)."""

    mode: str = "semantic"
    classes_per_label: int = 5

    def __post_init__(self) -> None:
        check_choice("selection.mode", self.mode, MODES)
        check_count("selection.classes_per_label", self.classes_per_label)


@dataclass(frozen=True)
class Selection:
    """The public classes that are kept, and the sensitive label that each was assigned to.

    `label_of` maps a public class to a sensitive label; the number of labels stands for "no label".
    `fell_back` says that the scores did not rise above the noise, so that all classes are kept.
    """

    label_of: dict[int, int]
    fell_back: bool = False


def select_all(public_classes: int, labels: int) -> Selection:
    """Every public class, assigned to no label."""
    return Selection(dict.fromkeys(range(public_classes), labels))


def select_semantic(
    histogram: torch.Tensor, noise_std: float, labels: int, classes_per_label: int
) -> Selection:
    """For each label its `classes_per_label` best public classes, no class twice.

    The highest count goes first, whatever its label: a class that two labels want goes to the one
    that wants it more. If fewer than half of the labels have a count that noise alone would reach
    with a probability of at most 5 %, the counts say nothing and all classes are kept.

    Args:
        histogram: noisy counts, [labels + 1, public classes]; the last row counts only if it is
            the only one (unlabelled data).
        noise_std: standard deviation of the noise on each count.
        labels: number of sensitive labels, 0 for unlabelled data.
        classes_per_label: classes for each label.

    Raises:
        UserError: there are too few public classes.
    """
    scores = histogram[: max(labels, 1)]
    check_enough_classes(scores.shape[0], scores.shape[1], classes_per_label)
    heard = scores.max(dim=1).values > noise_maximum(noise_std, scores.numel())
    if 2 * int(heard.sum()) < len(heard):
        return Selection(select_all(scores.shape[1], labels).label_of, fell_back=True)
    label_of: dict[int, int] = {}
    room = [classes_per_label] * scores.shape[0]
    for cell in torch.sort(scores.flatten(), descending=True, stable=True).indices.tolist():
        label, public_class = divmod(cell, scores.shape[1])
        if room[label] and public_class not in label_of:
            label_of[public_class] = label
            room[label] -= 1
    return Selection(label_of)


def check_enough_classes(labels: int, public_classes: int, classes_per_label: int) -> None:
    """Raises UserError if the public set has too few classes for all labels."""
    if labels * classes_per_label > public_classes:
        raise UserError(
            f"selection.classes_per_label is {classes_per_label}: {max(labels, 1)} labels would "
            f"need {labels * classes_per_label} public classes, and there are {public_classes}; "
            "lower it with --set selection.classes_per_label=…"
        )


def noise_maximum(noise_std: float, cells: int) -> float:
    """The value that the largest of `cells` noise values stays below with probability 95 %."""
    quantile = torch.tensor(1 - _FALSE_ALARM / cells, dtype=torch.float64)
    return noise_std * float(torch.special.ndtri(quantile))
