"""Templates, colours and plots of the HTML reports. A page needs no network and is readable on a phone."""

import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""The palette of Okabe and Ito for colour-blind readers. Every series also has a mark of its own."""
SERIES = tuple(zip((BLUE, GREEN, PURPLE, ORANGE, SKY, "#000000"), "os^vPX", strict=True))
OTHERS = "#c9cfd6"
WIDTH_IN, FONT_PT = 5.0, 9.5
"""Width and font size of every plot. It is narrow, so that its letters are 8 px high on a phone."""


def environment(*packages: str) -> jinja2.Environment:
    """Make the template environment of the reports. Further packages can hold templates too."""
    templates = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in ("ee_export.bench", *packages)]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["wrap"] = _wrap
    return templates


def _wrap(name: str) -> Markup:
    """Allow line breaks after the underscores of a name."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")))


def exit_colours(exits: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Choose a colour for each exit, and one for letters on it.

    Colours go from light to dark, so that they differ without hue. ``exits``: in the order in which a page reaches
    them.
    """
    names = list(dict.fromkeys(exits))
    colours = matplotlib.colormaps["cividis"](np.linspace(1, 0, len(names)))[:, :3]
    lightness = colours @ (0.299, 0.587, 0.114)
    return {
        name: (matplotlib.colors.to_hex(colour), "#000" if light > 0.5 else "#fff")
        for name, colour, light in zip(names, colours, lightness, strict=True)
    }


def drawing() -> AbstractContextManager[None]:
    """Return a context in which figures have the font of the reports."""
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "ee",
            "font.size": FONT_PT,
            "axes.titlesize": FONT_PT,
            "figure.labelsize": FONT_PT,
        }
    )


def panels(titles: list[str], x: str, y: str, height: float = 1.7, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Make one small plot per title, all with the same axes. ``x`` and ``y``: names of the axes."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(WIDTH_IN, 0.8 + height * rows), layout="constrained")
    axes_list = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in axes_list[len(titles) :]:
        axes.set_axis_off()
    for axes in axes_list[max(0, len(titles) - columns) : len(titles)]:
        axes.tick_params(labelbottom=True)
    for axes, title in zip(axes_list, titles, strict=False):
        axes.set_title(textwrap.fill(title.replace("_", "_ "), 62 // columns).replace("_ ", "_"))
        axes.grid(color="#e8ebee")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(x)
    figure.supylabel(y)
    return figure, axes_list[: len(titles)]


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Write the names of the series above all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def point(
    axes: Axes, x: Sequence[float], y: Sequence[float], mark: str, colour: str, label: str, size: float = 5
) -> None:
    """Plot a mark at two figures. Each is a value with the ends of its interval."""
    axes.plot(x[1:], [y[0], y[0]], color=colour, linewidth=0.8)
    axes.plot([x[0], x[0]], y[1:], color=colour, linewidth=0.8)
    axes.plot(x[0], y[0], mark, color=colour, markersize=size, markeredgecolor="white", label=label, linestyle="none")


def svg(name: str, figure: Figure) -> str:
    """Return the figure as SVG. Its ids begin with its name, because several figures share a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
