"""How an evaluation is done: the recipe's table `evaluation`."""

from dataclasses import dataclass

from privimage.errors import UserError, check_choice, check_count
from privimage.evaluate.features import DEFAULT

LABELS = {
    "cnn": "CNN",
    "resnet9": "ResNet-9",
    "wrn40_4": "WRN-40-4",
    "mlp": "MLP",
    "logistic": "logistic regression",
}
"""The kinds of classifiers, and what to call them."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, how often, and what may be looked at.

    Attributes:
        classifiers: trained on synthetic images, tested on real ones: cnn (three convolutions),
            resnet9, wrn40_4 (needs a GPU, or hours), mlp, logistic.
        repeats: how often each is trained.
        epochs: of the networks; the best one by a synthetic hold-out is kept.
        flip: mirror half of their training images left to right (not for letters).
        features: of the scores: efficientnet-lite0, inception, torchvision:NETWORK; empty for no
            scores.
        input_size: side to which images are brought for the features, pixels; 0 for the network's
            own.
        weights: file of the features' weights; empty to take the installed or cached one.
        most_images: how many images of a set the scores use at most.
        most_training_images: how many images of a set a classifier is trained on at most; as many
            as papers use.
        splits: how often the test set is split for the real/real floor.
        near_duplicates: whether synthetic images are looked up among the public ones.
        ceiling: train the same classifiers on the sensitive images themselves: OUTSIDE ε.
        sensitive_duplicates: look synthetic images up among the sensitive ones: OUTSIDE ε.
    """

    classifiers: tuple[str, ...] = ("resnet9", "mlp", "logistic")
    repeats: int = 3
    epochs: int = 30
    flip: bool = False
    features: str = DEFAULT
    input_size: int = 0
    weights: str = ""
    most_images: int = 10_000
    most_training_images: int = 60_000
    splits: int = 5
    near_duplicates: bool = True
    ceiling: bool = False
    sensitive_duplicates: bool = False

    def __post_init__(self) -> None:
        for kind in self.classifiers:
            check_choice("evaluation.classifiers", kind, LABELS)
        for name in ("repeats", "epochs", "most_images", "most_training_images", "splits"):
            check_count(f"evaluation.{name}", getattr(self, name))
        if self.input_size < 0:
            raise UserError(f"evaluation.input_size must be at least 0, got {self.input_size}")

    @property
    def most(self) -> int:
        """How many images of a set are looked at in all, however many there are."""
        return max(self.most_images, self.most_training_images)
