"""What an evaluation found, and so the structure of `evaluation/metrics.json`.

The file is `Evaluation` as JSON (`as_json`), field by field; a run's file also holds, at its top,
what the ledger says: epsilon (null where nothing is promised), delta, unit, adjacency, private,
not_private_because, outside_epsilon, ledger_head. Whatever could not be had is null, and `caveats`
says why. Fractions are not per cent.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from privimage.errors import UserError

SCHEMA = "privimage-evaluation/2"


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval.

    Attributes:
        value: the number; a mean where there are repeats.
        low: lower end of the interval; null if there is none.
        high: upper end.
        method: how the interval was had, such as "Student's t over 3 trainings".
    """

    value: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Accuracy:
    """How well one kind of classifier, trained on the set alone, does on the real test images.

    Attributes:
        label: what to call the classifier, such as "ResNet-9".
        over_test_images: mean accuracy over the repeats, and the interval that the finite number
            of test images leaves (Clopper-Pearson).
        over_repeats: the same mean, and the t-interval that the repeats' own coins leave; without
            ends for a single repeat.
        repeats: the accuracy of each repeat.
        held_out: mean accuracy on the part of the training images that was held out, by which the
            epoch was chosen; null for what chooses no epoch.
        recall: name of a label → fraction of its test images that are found, mean over the
            repeats; null for a label without test images.
        n_training: images trained on.
        n_test: real images tested on, which have one of the labels.
    """

    label: str
    over_test_images: Estimate
    over_repeats: Estimate
    repeats: tuple[float, ...]
    held_out: float | None
    recall: dict[str, float | None]
    n_training: int
    n_test: int


@dataclass(frozen=True)
class Floor:
    """A score and what real images score against real ones, at one and the same N.

    In each repeat the test images are split into two halves by chance. `real` scores one half
    against the other, `synthetic` as many synthetic images, drawn by chance, against the other.

    Attributes:
        n: images on either side.
        real: mean over the repeats, and t-interval.
        synthetic: the same for the synthetic images.
    """

    n: int
    real: Estimate
    synthetic: Estimate


@dataclass(frozen=True)
class Score:
    """One measure of how alike the synthetic and the test images are.

    Attributes:
        label: its name with the features that it was computed on: "FID (EfficientNet-Lite0)".
        lower_is_better: true for FID and KID.
        value: of all images that were used.
        n_synthetic: how many of them are synthetic.
        n_real: how many are real.
        floor: beside real images at the same N; null if the test set is too small to be split.
    """

    label: str
    lower_is_better: bool
    value: float
    n_synthetic: int
    n_real: int
    floor: Floor | None


@dataclass(frozen=True)
class NearDuplicates:
    """How far images are from their nearest neighbour in another set.

    Distances are root mean squares of the pixels' differences, in grey levels of 0 … 255.

    Attributes:
        against: which set the neighbours are looked for in: "public" or "sensitive".
        n_against: how many images of it were looked through.
        n_synthetic: how many synthetic images were looked up.
        n_test: how many test images were, as reference; 0 without a test set.
        quantiles: at which the distances below are given; the first is the minimum.
        synthetic: distances of the synthetic images at the quantiles.
        test: distances of the test images at the quantiles; null without a test set.
        closer_than_test: fraction of the synthetic images that are nearer to their neighbour than
            the nearest 1 % of the test images to theirs; about 0.01 if they are no nearer.
    """

    against: str
    n_against: int
    n_synthetic: int
    n_test: int
    quantiles: tuple[float, ...]
    synthetic: tuple[float, ...]
    test: tuple[float, ...] | None
    closer_than_test: float | None


@dataclass(frozen=True)
class FeatureFacts:
    """On which features the scores were computed.

    Attributes:
        name: as given: "efficientnet-lite0", "inception", "torchvision:NETWORK".
        label: as in the scores' labels.
        dimensions: number of features of an image.
        input_size: side to which every image is brought first, pixels.
        weights_sha256: of the file of weights.
    """

    name: str
    label: str
    dimensions: int
    input_size: int
    weights_sha256: str


@dataclass(frozen=True)
class SetScores:
    """What was found of one set of images.

    Attributes:
        accuracy: kind of classifier ("cnn", "resnet9", "wrn40_4", "mlp", "logistic") → accuracy.
        scores: "fid", "kid", "inception_score", "precision", "recall", "density", "coverage".
        near_duplicates: against the public images.
    """

    accuracy: dict[str, Accuracy] | None = None
    scores: dict[str, Score] | None = None
    near_duplicates: NearDuplicates | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found.

    Attributes:
        seed: decides every random choice.
        repeats: trainings of each classifier.
        splits: of the test set, for the floors.
        features: of the scores.
        caveats: sentences that belong beside the numbers wherever they are shown.
        synthetic: the synthetic images.
        pretrained: as many images from before DP fine-tuning.
        ceiling: the same classifiers trained on the sensitive images themselves: computed without
            noise, outside ε, only if asked for.
        sensitive_duplicates: near duplicates of sensitive images: the same warning.
        schema: of this structure.
    """

    seed: int
    repeats: int
    splits: int
    features: FeatureFacts | None
    caveats: tuple[str, ...]
    synthetic: SetScores
    pretrained: SetScores | None = None
    ceiling: dict[str, Accuracy] | None = None
    sensitive_duplicates: NearDuplicates | None = None
    schema: str = SCHEMA


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The JSON object of an evaluation."""
    return asdict(evaluation)


def from_json(values: dict[str, Any]) -> Evaluation:
    """The inverse of `as_json`; what else is in `values` is left aside.

    Raises:
        UserError: the values are of another schema.
    """
    try:
        if values.get("schema") == SCHEMA:
            return TypeAdapter(Evaluation).validate_python(values)
    except ValidationError:
        pass
    raise UserError(f"an evaluation is not of the schema {SCHEMA}; evaluate again")
