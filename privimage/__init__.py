"""Labelled synthetic image data sets under differential privacy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privimage.synthesizer import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`privimage.load`, found when it is asked for: `privimage.dp` must not bring the pipeline."""
    if name != "load":
        raise AttributeError(f"module 'privimage' has no attribute '{name}'")
    from privimage.synthesizer import load

    return load
