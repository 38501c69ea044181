"""How good synthetic images are, measured on images that are declared public."""

from privimage.evaluate.classifiers import Resources, accuracies, check_test_set
from privimage.evaluate.duplicates import near_duplicates
from privimage.evaluate.duration import Workload, evaluation_seconds
from privimage.evaluate.evaluation import Material, evaluate
from privimage.evaluate.features import FeatureNetwork, compute_features, load_features
from privimage.evaluate.metrics import fid, inception_score, kid
from privimage.evaluate.neighbours import manifold, nearest_distances
from privimage.evaluate.parts import Parts
from privimage.evaluate.picture import comparison_picture
from privimage.evaluate.result import Evaluation, as_json, from_json
from privimage.evaluate.scores import scores
from privimage.evaluate.settings import EvaluationSettings
from privimage.evaluate.tables import accuracy_table, in_order, score_table, sentences

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "FeatureNetwork",
    "Material",
    "Parts",
    "Resources",
    "Workload",
    "accuracies",
    "accuracy_table",
    "as_json",
    "check_test_set",
    "comparison_picture",
    "compute_features",
    "evaluate",
    "evaluation_seconds",
    "fid",
    "from_json",
    "in_order",
    "inception_score",
    "kid",
    "load_features",
    "manifold",
    "near_duplicates",
    "nearest_distances",
    "score_table",
    "scores",
    "sentences",
]
