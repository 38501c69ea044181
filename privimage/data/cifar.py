"""CIFAR-10 and CIFAR-100, binary version: rows of label bytes and 3 × 32 × 32 pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privimage.data.source import Entry, Source, UnreadableSet
from privimage.errors import UserError

_PIXELS = 3 * 32 * 32
_NAMES_10, _NAMES_100 = "batches.meta.txt", "fine_label_names.txt"


@dataclass(frozen=True, kw_only=True)
class CifarSource(Source):
    """Files of rows of `label_bytes` labels, of which the last counts, and the pixels."""

    form = "CIFAR binary version"
    files: tuple[Path, ...]
    label_bytes: int

    def entries(self) -> Iterator[Entry]:
        """File by file, row by row."""
        size = self.label_bytes + _PIXELS
        for path in self.files:
            with open(path, "rb") as file:
                for row in range(path.stat().st_size // size):
                    content = file.read(size)
                    label = content[self.label_bytes - 1]
                    pixels = np.frombuffer(content, np.uint8, offset=self.label_bytes)
                    image = pixels.reshape(3, 32, 32).transpose(1, 2, 0)
                    yield Entry(image, label, f"{path.name} row {row}")


def training_files(folder: Path) -> list[Path]:
    """The training images in a folder of CIFAR's binary version; none if it is no such folder."""
    if (folder / _NAMES_100).is_file():
        return [file for file in (folder / "train.bin",) if file.is_file()]
    return sorted(folder.glob("data_batch_*.bin")) if (folder / _NAMES_10).is_file() else []


def open_cifar(name: str, path: Path, files: list[Path]) -> Source:
    """The image set of `files`, which `path` (the folder, or one of them) stands for.

    Raises:
        UserError: the label names are missing, or a file is cut short.
    """
    folder = files[0].parent
    names_file = next((n for n in (_NAMES_100, _NAMES_10) if (folder / n).is_file()), None)
    if names_file is None:
        raise UserError(
            f"{name}: '{path}' is no image set; a .bin file of CIFAR needs {_NAMES_10} or "
            f"{_NAMES_100} beside it"
        )
    label_bytes = 2 if names_file == _NAMES_100 else 1
    text = (folder / names_file).read_text(encoding="utf-8", errors="replace")
    sizes = {file: file.stat().st_size for file in files}
    for file, size in sizes.items():
        if size == 0 or size % (label_bytes + _PIXELS):
            raise UnreadableSet(
                f"{name}: '{file}' is cut short: it is no whole number of rows of "
                f"{label_bytes + _PIXELS} bytes",
                f"{size} bytes",
            )
    return CifarSource(
        path=path,
        names=tuple(line.strip() for line in text.splitlines() if line.strip()),
        is_labelled=True,
        count=sum(sizes.values()) // (label_bytes + _PIXELS),
        files=tuple(files),
        label_bytes=label_bytes,
    )
