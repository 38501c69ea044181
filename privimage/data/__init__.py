"""Image sets: read by a written rule, one image at a time, and written for others to read."""

from privimage.data.images import (
    ImageSet,
    ImageShape,
    randomly_flipped,
    subsample,
    to_bytes,
    to_unit_range,
)
from privimage.data.load import (
    check_source,
    load_public,
    load_sample,
    load_sensitive,
    load_test,
)
from privimage.data.persons import PersonKey
from privimage.data.write import ImageFile, file_name, image_files, png, write_parquet

__all__ = [
    "ImageFile",
    "ImageSet",
    "ImageShape",
    "PersonKey",
    "check_source",
    "file_name",
    "image_files",
    "load_public",
    "load_sample",
    "load_sensitive",
    "load_test",
    "png",
    "randomly_flipped",
    "subsample",
    "to_bytes",
    "to_unit_range",
    "write_parquet",
]
