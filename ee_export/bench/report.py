"""One self-contained HTML page of a study's figures: tables and plots, readable on a phone, nothing from the network."""

import io
from importlib import resources
from typing import Any

import jinja2
import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind people tell apart; every series also has a mark or hatch of its own."""
MARKS = "osD^vPX"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


def render(result: dict[str, Any]) -> str:
    """The HTML page of :func:`ee_export.bench.pareto.run`'s figures."""
    rows = [
        {**policy, **{key: model[key] for key in ("placement", "head", "strategy")}}
        for model in result["models"]
        for policy in model["policies"]
        if "metrics" in policy
    ]
    rows.sort(key=lambda row: (-row["metrics"]["accuracy"][0], row["metrics"]["mean_ms"][0]))
    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        plots = [
            (
                "Accuracy against measured cost",
                "Each line: the tuner's frontier, found on pages kept apart and carried over "
                "to the test pages. Up and left is better.",
                _svg(_frontiers(result)),
            ),
            (
                "Where pages leave",
                "Share of test pages that leave at each exit, at the operating point that loses no right "
                "answer in tuning.",
                _svg(_exits(rows)),
            ),
            (
                "Reliability before and after calibration",
                "Of the first model: confidence against accuracy in bins of "
                "equal mass. On the dashed line, the confidence is what it says.",
                _svg(_reliability(result["models"][0])),
            ),
            ("Anytime", "Accuracy when every page must be answered by a deadline, measured.", _svg(_anytime(result))),
        ]
    template = resources.files("ee_export.bench").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(result=result, rows=rows, plots=plots)


def _name(model: dict[str, Any]) -> str:
    return f"{model['placement']}, {model['head']}, {model['strategy']}"


def _frontiers(result: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for at, model in enumerate(result["models"]):
        for number, policy in enumerate(entry for entry in model["policies"] if "metrics" in entry):
            points = np.array([[p["mean_cost_ms"], p["accuracy"]] for p in policy["frontier"]])
            _line(axes, points, at, f"{_name(model)}: {policy['calibration']}, {policy['criterion']}", mark=number)
    axes.set(xlabel="mean cost a page, ms", ylabel="accuracy on test pages")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=1, frameon=False)
    return figure


def _exits(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.34 * len(rows)))
    names = list(dict.fromkeys(name for row in rows for name in row["exit_rate"]))
    labels = [f"{_name(row)}\n{row['calibration']}, {row['criterion']}" for row in rows]
    left = np.zeros(len(rows))
    for at, name in enumerate(names):
        share = np.array([row["exit_rate"].get(name, 0.0) for row in rows])
        axes.barh(
            range(len(rows)),
            share,
            left=left,
            color=COLOURS[at % len(COLOURS)],
            hatch=HATCHES[at % len(HATCHES)],
            edgecolor="white",
            linewidth=0.5,
            label=name,
        )
        left += share
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="share of pages", xlim=(0, 1))
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=min(5, len(names)), frameon=False)
    return figure


def _reliability(model: dict[str, Any]) -> Figure:
    methods = model["by_exit"]
    figure, every = plt.subplots(1, len(methods), figsize=(7, 3.4), sharey=True, squeeze=False)
    for axes, (method, exits) in zip(every[0], methods.items(), strict=True):
        axes.plot([0, 1], [0, 1], "--", color="#888888", linewidth=1)
        for at, (name, found) in enumerate(exits.items()):
            bins = np.array([[said, hit] for _, said, hit in found["reliability"]])
            _line(axes, bins, at, name)
        axes.set(title=method, xlabel="confidence", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    every[0][0].set_ylabel("accuracy")
    handles, names = every[0][0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="lower center", ncol=min(5, len(names)), frameon=False)
    figure.subplots_adjust(bottom=0.28)
    return figure


def _anytime(result: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for at, model in enumerate(result["models"]):
        points = np.array([[p["deadline_ms"], p["accuracy"]] for p in model["anytime"]])
        _line(axes, points, at, _name(model), size=4, width=1.5)
    axes.set(xscale="log", xlabel="deadline, ms (log)", ylabel="accuracy on test pages")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return figure


def _line(
    axes: Axes, points: np.ndarray, at: int, label: str, mark: int | None = None, size: float = 3, width: float = 1
) -> None:
    """A marked line through points ``[N, 2]`` in colour ``at``; its mark too, unless another is named."""
    axes.plot(
        points[:, 0],
        points[:, 1],
        marker=MARKS[(at if mark is None else mark) % len(MARKS)],
        markersize=size,
        linewidth=width,
        color=COLOURS[at % len(COLOURS)],
        label=label,
    )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
