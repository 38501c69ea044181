"""The finished parts of an evaluation, kept on disk so that a stopped one goes on from them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from privimage import durable
from privimage.data import ImageSet
from privimage.errors import UserError

Result = TypeVar("Result")
_CHUNK = 4096


class Parts:
    """Results by name; one holds as long as all that it depends on is the same."""

    def __init__(self, folder: Path | None = None) -> None:
        """Keeps them in `folder`, which is made when the first is had; None keeps none."""
        self._folder = folder

    def result(
        self,
        name: str,
        form: type[Result],
        depends_on: Callable[[], Mapping[str, Any]],
        compute: Callable[[], Result],
    ) -> Result:
        """The result `name`: the one that was kept, if it is of the same things, else a new one.

        Nothing of sensitive images may be kept so: the hash of a set says whether an image is in
        it.

        Args:
            name: of the part; names its file.
            form: type of the result, made of dataclasses and JSON values.
            depends_on: settings, seeds and hashes of image sets (`digest`), as JSON values; asked
                for only where something is kept.
            compute: makes the result.
        """
        if self._folder is None:
            return compute()
        about = json.dumps([version("privimage"), name, depends_on()], sort_keys=True)
        key = hashlib.sha256(about.encode()).hexdigest()
        path, adapter = self._folder / f"{name}.json", TypeAdapter(form)
        try:
            kept = durable.read_json(path)
            if kept["key"] == key:
                return adapter.validate_python(kept["result"])
        except (UserError, ValidationError, KeyError, TypeError):
            # There is none, or none that is whole.
            pass
        found = compute()
        durable.make_folder(self._folder)
        durable.write_json(path, {"key": key, "result": adapter.dump_python(found)})
        return found


def digest(images: ImageSet) -> str:
    """What names this image set, and no other."""
    found = hashlib.sha256(json.dumps([list(images.images.shape), images.names]).encode())
    for piece in images.images.split(_CHUNK):
        found.update(piece.contiguous().numpy().data)
    found.update(images.labels.contiguous().numpy().data)
    return found.hexdigest()
