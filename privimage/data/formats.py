"""Which format an image set has, told from its path."""

import glob
import os
from pathlib import Path, PurePosixPath

from privimage.data.archive import ARCHIVES, open_archive
from privimage.data.builtin import PREFIX, open_builtin
from privimage.data.cifar import open_cifar, training_files
from privimage.data.folder import open_folder
from privimage.data.idx import is_idx, open_idx
from privimage.data.npz import open_npz
from privimage.data.parquet import open_parquet
from privimage.data.persons import PersonKey, refuse_persons
from privimage.data.source import Source
from privimage.errors import UserError

KNOWN = (
    ".parquet, .zip, .tar, .tar.gz, .npz, IDX (…-images-idx3-ubyte), CIFAR (.bin), or a folder of "
    "images or .parquet files"
)


def open_source(name: str, path: Path, person: PersonKey | None = None) -> Source:
    """Opens the image set at `path`; its images are not looked at.

    Args:
        name: how messages call the set, such as "--public".
        path: a file or folder, a pattern such as `data/train-*.parquet`, a folder in an archive,
            such as `scans.zip/train`, or the name of a built-in set.
        person: where its persons are named; None if nobody asks.

    Raises:
        UserError: the path is missing, empty, of no known format, or damaged as a whole, or names
            no persons in that way.
    """
    if str(path).startswith(PREFIX):
        refuse_persons(name, path, person)
        return open_builtin(name, path)
    try:
        if not path.exists():
            if shards := _shards_of(path):
                return open_parquet(name, path, shards, person)
            for archive in path.parents:
                if archive.is_file() and archive.name.lower().endswith(ARCHIVES):
                    part = PurePosixPath(path.relative_to(archive).as_posix())
                    return open_archive(name, archive, person, part)
            raise UserError(f"{name}: there is no file or folder '{path}'")
        opened = _open_folder if path.is_dir() else _open_file
        return opened(name, path, person)
    except OSError as error:
        raise UserError(f"{name}: '{path}' can't be read ({error.strerror or error})") from error


def share_images(one: str, other: str) -> bool:
    """Whether two image sets have a file in common, or a folder of one lies in the other."""
    ours, theirs = _places(one), _places(other)
    return bool(ours & theirs) or _lies_in(ours, theirs) or _lies_in(theirs, ours)


def lies_in_set(path: Path, source: str) -> bool:
    """Whether `path` is the folder that an image set is, or would lie in it as a part of it."""
    place, places = Path(os.path.realpath(path)), _places(source)
    return any(above in places and above.is_dir() for above in (place, *place.parents))


def _places(source: str) -> set[Path]:
    """The files that a set is read from, or its folder, or its place in an archive; resolved."""
    path = Path(source)
    files = _shards_of(path) or (training_files(path) if path.is_dir() else [])
    return {Path(os.path.realpath(file)) for file in files or [path]}


def _lies_in(places: set[Path], others: set[Path]) -> bool:
    """Whether a place is a folder below one of the others; both may be in an archive."""
    return any(
        above in others and (place.is_dir() or not above.is_dir())
        for place in places
        for above in place.parents
    )


def _shards_of(path: Path) -> list[Path]:
    """The Parquet files that a folder or a pattern stands for; none if it is something else."""
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    found = [] if path.exists() else sorted(map(Path, glob.glob(str(path))))
    return found if all(shard.suffix == ".parquet" for shard in found) else []


def _open_folder(name: str, path: Path, person: PersonKey | None) -> Source:
    if shards := _shards_of(path):
        return open_parquet(name, path, shards, person)
    if sets := sorted(filter(is_idx, path.iterdir())):
        raise UserError(
            f"{name}: '{path}' holds IDX files; name the images that are meant, as in '{sets[-1]}'"
        )
    batches = training_files(path)
    if not batches:
        return open_folder(name, path, person)
    refuse_persons(name, path, person)
    return open_cifar(name, path, batches)


def _open_file(name: str, path: Path, person: PersonKey | None) -> Source:
    if path.name.lower().endswith(ARCHIVES):
        return open_archive(name, path, person)
    if path.suffix == ".parquet":
        return open_parquet(name, path, [path], person)
    if path.suffix == ".npz":
        return open_npz(name, path, person)
    if path.suffix == ".bin" or is_idx(path):
        refuse_persons(name, path, person)
        return open_cifar(name, path, [path]) if path.suffix == ".bin" else open_idx(name, path)
    raise UserError(f"{name}: '{path}' is no image set of a known format: {KNOWN}")
