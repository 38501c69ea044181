"""Pictures as text within a page: images as data URIs, curves as SVG in the page's colours."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privimage.data import png

_GAP = 1
# Drawn in these colours and then given over to the page's style sheet, for light and dark.
_INK, _ACCENT, _FAINT = "#0a0b0c", "#0d0e0f", "#101112"
_STYLE = {
    _INK: "var(--ink)",
    _ACCENT: "var(--accent)",
    _FAINT: "var(--line)",
}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def strip(images: torch.Tensor) -> str:
    """Images side by side as one PNG, a data URI; uint8 [n, channels, height, width]."""
    count, channels, height, width = images.shape
    tiles = torch.zeros(4, height, count * (width + _GAP) - _GAP, dtype=torch.uint8)
    for column, image in enumerate(images):
        left = column * (width + _GAP)
        tiles[:3, :, left : left + width] = image if channels == 3 else image.expand(3, -1, -1)
        tiles[3, :, left : left + width] = 255
    return f"data:image/png;base64,{base64.b64encode(png(tiles)).decode()}"


def curve(
    name: str, x: Sequence[float], y: Sequence[float], labels: tuple[str, str], limit: float = 0.0
) -> Markup:
    """One line as SVG; `limit` is drawn as a dotted line if it is finite and above 0.

    Args:
        name: differs from that of every other curve on the page.
        x: of the points.
        y: of the points.
        labels: of the axes; together, the picture's name for who can't see it.
        limit: a value of y.
    """
    with rc_context(_RC | {"svg.hashsalt": name}):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(x, y, color=_ACCENT, linewidth=2)
        if 0 < limit < math.inf:
            axes.axhline(limit, color=_INK, linestyle=":", linewidth=1)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.margins(x=0.01)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    said = escape(f"Curve: {labels[1]}, over {labels[0]}")
    svg = f'<svg role="img" aria-label="{said}"' + svg[svg.index("<svg") + len("<svg") :]
    for drawn, styled in _STYLE.items():
        svg = svg.replace(drawn, styled)
    # Numbers and our own words, no text of others.
    return Markup(svg)  # noqa: S704
