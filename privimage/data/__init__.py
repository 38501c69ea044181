"""Image sets: read by a written rule, one image at a time, and written for others to read."""

from privimage.data.images import ImageSet, ImageShape, to_bytes, to_unit_range
from privimage.data.load import check_source, load_public, load_sensitive
from privimage.data.persons import PersonKey
from privimage.data.write import write_parquet

__all__ = [
    "ImageSet",
    "ImageShape",
    "PersonKey",
    "check_source",
    "load_public",
    "load_sensitive",
    "to_bytes",
    "to_unit_range",
    "write_parquet",
]
