"""Which format an image set has, told from its path."""

import glob
from pathlib import Path

from privimage.data.archive import ARCHIVES, open_archive
from privimage.data.cifar import open_cifar, training_files
from privimage.data.folder import open_folder
from privimage.data.idx import is_idx, open_idx
from privimage.data.npz import open_npz
from privimage.data.parquet import open_parquet
from privimage.data.source import Source
from privimage.errors import UserError

KNOWN = (
    ".parquet, .zip, .tar, .tar.gz, .npz, IDX (…-images-idx3-ubyte), CIFAR (.bin), or a folder of "
    "images or .parquet files"
)


def open_source(name: str, path: Path) -> Source:
    """Opens the image set at `path`; its images are not looked at.

    Args:
        name: how messages call the set, such as "--public".
        path: a file or folder, or a pattern such as `data/train-*.parquet`.

    Raises:
        UserError: the path is missing, empty, of no known format, or damaged as a whole.
    """
    try:
        if not path.exists():
            shards = sorted(map(Path, glob.glob(str(path))))
            if shards and all(shard.suffix == ".parquet" for shard in shards):
                return open_parquet(name, path, shards)
            raise UserError(f"{name}: there is no file or folder '{path}'")
        return _open_folder(name, path) if path.is_dir() else _open_file(name, path)
    except OSError as error:
        raise UserError(f"{name}: '{path}' can't be read ({error.strerror or error})") from error


def _open_folder(name: str, path: Path) -> Source:
    shards = sorted(path.glob("*.parquet"))
    if shards:
        return open_parquet(name, path, shards)
    batches = training_files(path)
    return open_cifar(name, path, batches) if batches else open_folder(name, path)


def _open_file(name: str, path: Path) -> Source:
    if path.name.lower().endswith(ARCHIVES):
        return open_archive(name, path)
    if path.suffix == ".parquet":
        return open_parquet(name, path, [path])
    if path.suffix == ".npz":
        return open_npz(name, path)
    if path.suffix == ".bin":
        return open_cifar(name, path, [path])
    if is_idx(path):
        return open_idx(name, path)
    raise UserError(f"{name}: '{path}' is no image set of a known format: {KNOWN}")
