"""Draws figures with matplotlib (the extra `plots`), through its object interface: no pyplot, no window."""

import dataclasses
import io
import re
import warnings
from typing import Any

import matplotlib
import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from jpeft.report import pictures

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": pictures.MUTED,
    "axes.labelcolor": pictures.MUTED,
    "axes.titlecolor": pictures.INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": pictures.RULE,
    "grid.linewidth": 0.7,
    "xtick.color": pictures.MUTED,
    "ytick.color": pictures.MUTED,
    "text.color": pictures.INK,
    "text.parse_math": False,  # a dollar sign in a model's name must not start a formula
    "legend.fontsize": 9.5,
    "svg.fonttype": "none",  # keep text as text: smaller, and accessible
}
# The variable of the page's style sheet for each colour.
_VARIABLES = {
    pictures.INK: "--ink",
    pictures.MUTED: "--muted",
    pictures.RULE: "--rule",
    **{colour: f"--{method}" for method, colour in pictures.COLOURS.items()},
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure as files, and as SVG for embedding in the page, with the page's variables as colours."""

    png: bytes
    svg: bytes
    inline_svg: str


def render(figure: pictures.Figure) -> Drawn:
    """Draws a figure; the output is deterministic."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": figure.name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack characters
        drawn = matplotlib.figure.Figure(figsize=figure.size)
        figure.draw(drawn)
        drawn.text(0.008, 0.99, figure.label.replace("`", ""), va="top", fontsize=9, color=pictures.MUTED)
        png, svg = io.BytesIO(), io.BytesIO()
        FigureCanvasAgg(drawn).print_figure(png, format="png", dpi=130, metadata={"Software": None})
        FigureCanvasSVG(drawn).print_figure(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawn(png.getvalue(), svg.getvalue(), _inline(svg.getvalue().decode(), figure))


def _inline(svg: str, figure: pictures.Figure) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<g id=\"patch_1\">.*?</g>", "", body, count=1, flags=re.DOTALL)  # the white background
    # An id must be unique in a page with many figures.
    body = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{figure.name}-\1"', body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{figure.name}-", body)
    body = re.sub(r"width=\"[\d.]+pt\" height=\"[\d.]+pt\"", "", body, count=1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    # Remove the axes' white background, so that the page's shows.
    return re.sub(r"fill: #ffffff", "fill: none", body)
