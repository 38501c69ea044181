"""What leaves a run: its synthetic images, in the forms that others read, and what is promised."""

from privimage.release.card import Contents, data_card, model_card
from privimage.release.statement import not_covered, privacy_statement, promise
from privimage.release.writers import write_folder, write_npz, write_zip

__all__ = [
    "Contents",
    "data_card",
    "model_card",
    "not_covered",
    "privacy_statement",
    "promise",
    "write_folder",
    "write_npz",
    "write_zip",
]
