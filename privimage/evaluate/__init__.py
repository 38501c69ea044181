"""How good synthetic images are, measured on images that are declared public."""

from privimage.evaluate.classifiers import accuracies, check_test_set
from privimage.evaluate.metrics import fid
from privimage.evaluate.report import accuracy_table, comparison_picture, epsilon_sentence

__all__ = [
    "accuracies",
    "accuracy_table",
    "check_test_set",
    "comparison_picture",
    "epsilon_sentence",
    "fid",
]
