"""The HTML report of a study: one self-contained page with sentences, tables and plots."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ee_export.bench.report_plots import (
    BLUE,
    OTHERS,
    SERIES,
    VERMILLION,
    drawing,
    environment,
    exit_colours,
    legend,
    panels,
    point,
    svg,
)
from ee_export.model.exits import order_exits
from ee_export.policy.metrics import paired_difference

COST, ACCURACY = "mean ms a page", "accuracy on test pages"

Entry = dict[str, Any]

NEVER: Entry = {"calibration": "–", "criterion": "–", "thresholds": "no early exit", "frontier": [], "bars": {}}
"""A policy's fields for a run of the full model."""


def render(result: Entry) -> str:
    """Render the HTML page of the figures of :func:`benchmarks.pareto.study.run`."""
    models = _name_models(result["models"])
    picks = _pick(models)
    chosen = picks["unshown"]["model"]
    choices = _group_gains(result["gains"], models)
    colours = exit_colours(_collect_exits(models))
    exits = list(colours)
    with drawing():
        plots = {
            "frontiers": svg("frontiers", _plot_frontiers(models)),
            "policies": svg("policies", _plot_policies(chosen)),
            "reliability": svg("reliability", _plot_reliability(chosen)),
            "anytime": svg("anytime", _plot_anytime(models)),
        }
    templates = environment("benchmarks.pareto")
    templates.filters["signed"] = format_signed
    templates.globals.update(verdict=verdict, span=span, shade=_shade, by_method=_by_method, brought=_describe_gain)
    return templates.get_template("report.html.j2").render(
        result=result,
        models=models,
        picks=picks,
        chosen=chosen,
        against_whole=[(policy, _compare_right(policy, chosen["whole"])) for policy in sorted(chosen["ran"], key=_ms)],
        left_out=_group_left_out(models),
        exits=exits,
        colours=colours,
        choices=choices,
        slow=sum(_ms(policy) > 1.1 * _ms(model["whole"]) for model in models for policy in model["ran"]),
        auroc=_average_auroc(models, exits),
        plots=plots,
    )


def _collect_exits(models: list[Entry]) -> tuple[str, ...]:
    """Collect the exits of all models, in the order of a trunk that has them all."""
    names = {name for model in models for name in model["exits"]}
    return order_exits(names, max((int(name[8:]) for name in names if name.startswith("encoder.")), default=0))


def verdict(interval: list[float]) -> int:
    """Return 1 or −1 if a difference's interval ``[mean, low, high]`` lies above or below zero, else 0."""
    _, low, high = interval
    return int(low > 0) - int(high < 0)


def format_signed(value: float, digits: int, factor: float = 1) -> str:
    """Format a difference with its sign, or without one if it rounds to zero."""
    rounded = round(value * factor, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def span(intervals: Iterable[list[float]]) -> tuple[float, float]:
    """Find the lowest and the highest end of intervals and zero, for a row of interval marks."""
    ends = [0.0, *(end for interval in intervals for end in interval)]
    return min(ends), max(max(ends), min(ends) + 1e-9)


def _name_models(models: list[Entry]) -> list[Entry]:
    """Add name, number and runnable policies to each model. A model without a policy runs as the full model."""
    keys = ("placement", "head", "strategy")
    differ = [key for key in keys if len({model[key] for model in models}) > 1] or ["placement"]
    named = []
    for number, model in enumerate(models, 1):
        ran = [policy for policy in model["policies"] if "metrics" in policy] or [{**NEVER, **model["whole"]}]
        name, full = (", ".join(model[key] for key in chosen) for chosen in (differ, keys))
        named.append({**model, "number": number, "name": name, "full": full, "ran": ran, "first": ran[0]})
    return named


def _pick(models: list[Entry]) -> Entry:
    """Pick the most accurate full model, and the cheapest policies of any model with its accuracy.

    ``even``: right at least as often. ``unshown``: not right less often with 95 % confidence.
    """
    best = min(models, key=lambda model: (-sum(model["whole"]["pages"]["right"]), _ms(model["whole"])))
    whole = best["whole"]
    tried = [(model, policy) for model in models for policy in model["ran"]] + [(best, {**NEVER, **whole})]
    tried.sort(key=lambda pair: _ms(pair[1]))

    def first(holds: Callable[[Entry], bool]) -> Entry:
        model, policy = next(pair for pair in tried if holds(pair[1]))
        return {"model": model, "policy": policy, "right": _compare_right(policy, whole)}

    return {
        "best": best,
        "tried": len(tried) - 1,
        "even": first(lambda policy: sum(policy["pages"]["right"]) >= sum(whole["pages"]["right"])),
        "unshown": first(lambda policy: verdict(_compare_right(policy, whole)) >= 0),
    }


def _ms(run: Entry) -> float:
    return float(run["metrics"]["mean_ms"][0])


def _compare_right(run: Entry, base: Entry) -> list[float]:
    """Compute how much more often a run is right than another on the same pages: mean and 95 % interval."""
    return paired_difference(run["pages"]["right"], base["pages"]["right"])


def _group_left_out(models: list[Entry]) -> dict[str, list[int]]:
    """Collect the reasons for which policies were left out, with the numbers of their models."""
    reasons: dict[str, list[int]] = {}
    for model in models:
        for policy in model["policies"]:
            if "left_out" in policy and model["number"] not in reasons.setdefault(policy["left_out"], []):
                reasons[policy["left_out"]].append(model["number"])
    return reasons


def _group_gains(gains: list[Entry], models: list[Entry]) -> list[Entry]:
    """Group paired differences by the choice that differs, with the models that have it."""
    by_name = {model["full"]: model for model in models}
    groups: dict[tuple[str, str], list[Entry]] = {}
    for gain in gains:
        if gain["choice"] == "model":
            full, base = gain["of"].split(" against ")
            what = f"against {by_name[base]['name']}"
        else:
            what, full = gain["of"].split(": ")
        groups.setdefault((gain["choice"], what), []).append({**gain, "model": by_name[full]})
    return [{"choice": choice, "what": what, "entries": entries} for (choice, what), entries in groups.items()]


def _describe_gain(choice: Entry) -> str:
    """Describe the result of one comparison in words, with the number of models."""
    right = _describe_moves(choice, "right", {1: "right more often", -1: "right less often"}, 1, 100)
    ms = _describe_moves(choice, "ms", {-1: "faster", 1: "slower"}, 1, 1)
    return f"{', '.join(right) or 'no difference in accuracy'}; {', '.join(ms) or 'none in time'}"


def _describe_moves(choice: Entry, key: str, words: dict[int, str], digits: int, factor: float) -> list[str]:
    phrases = []
    for sign, word in words.items():
        hits = [entry for entry in choice["entries"] if verdict(entry[key]) == sign]
        if not hits:
            continue
        means = [entry[key][0] for entry in hits]
        extent = " to ".join(dict.fromkeys(format_signed(mean, digits, factor) for mean in (min(means), max(means))))
        numbers = ", ".join(str(entry["model"]["number"]) for entry in hits)
        where = f": {numbers}" if choice["choice"] == "model" else f" in {len(hits)} of {len(choice['entries'])}"
        phrases.append(f"{word}{where} ({extent} {'points' if key == 'right' else 'ms'})")
    return phrases


def _average_auroc(models: list[Entry], exits: list[str]) -> list[tuple[str, str, list[float | None]]]:
    """List criterion, calibration and AUROC at each exit, as the mean over the models in which it is defined."""
    of_models = [model["auroc"] for model in models]
    methods = dict.fromkeys(method for auroc in of_models for method in auroc)
    criteria = dict.fromkeys(
        criterion for auroc in of_models for by_criterion in auroc.values() for criterion in by_criterion
    )
    table = []
    for criterion, method in itertools.product(criteria, methods):
        means: list[float | None] = []
        for name in exits:
            values = [auroc.get(method, {}).get(criterion, {}).get(name, np.nan) for auroc in of_models]
            defined = [value for value in values if not np.isnan(value)]
            means.append(float(np.mean(defined)) if defined else None)
        table.append((criterion, method, means))
    return table


def _by_method(model: Entry, exit_name: str, key: str) -> list[float]:
    """List a figure of one exit under each calibration."""
    return [figures[exit_name][key] for figures in model["by_exit"].values()]


def _shade(auroc: float) -> str:
    """Choose the background of a cell: white at an AUROC of 0.5, blue at 1."""
    return f"rgba(0, 114, 178, {max(0.0, auroc - 0.5):.2f})"


def _titles(models: list[Entry]) -> list[str]:
    return [f"{model['number']} {model['name']}" for model in models]


def _plot_frontiers(models: list[Entry]) -> Figure:
    """Plot each model's Pareto front and operating point in front of those of all others."""
    figure, axes_list = panels(_titles(models), COST, ACCURACY, 2.0)
    for axes, model in zip(axes_list, models, strict=True):
        for other in models:
            axes.plot(*_frontier(other), color=OTHERS, linewidth=0.8)
        axes.plot(*_frontier(model), color=BLUE, linewidth=1.5, label="frontier")
        _plot_run(axes, model["first"], "o", BLUE, "operating point")
        _plot_run(axes, model["whole"], "D", VERMILLION, "no early exit")
        axes.set_xlim(left=0)
    legend(figure, axes_list[0], 3)
    return figure


def _frontier(model: Entry) -> tuple[list[float], list[float]]:
    points = model["first"]["frontier"]
    return [point["mean_cost_ms"] for point in points], [point["accuracy"] for point in points]


def _plot_run(axes: Axes, run: Entry, mark: str, colour: str, label: str) -> None:
    """Plot a run's accuracy and time with their intervals."""
    point(axes, run["metrics"]["mean_ms"], run["metrics"]["accuracy"], mark, colour, label)


def _plot_policies(model: Entry) -> Figure:
    """Plot one model's policies in a panel per kind of thresholds. The marks of the first calibration are hollow."""
    criteria, kinds, calibrations = (
        list(dict.fromkeys(policy[key] for policy in model["ran"]))
        for key in ("criterion", "thresholds", "calibration")
    )
    figure, axes_list = panels(kinds, COST, ACCURACY)
    for axes, kind in zip(axes_list, kinds, strict=True):
        for policy in model["ran"]:
            (y, *_), (x, *_) = policy["metrics"]["accuracy"], policy["metrics"]["mean_ms"]
            colour, mark = SERIES[criteria.index(policy["criterion"]) % len(SERIES)]
            if policy["thresholds"] != kind:
                axes.plot(x, y, mark, color=OTHERS, markersize=3)
                continue
            face = "white" if policy["calibration"] == calibrations[0] and len(calibrations) > 1 else colour
            axes.plot(x, y, mark, color=colour, markerfacecolor=face, markersize=5)
        _plot_run(axes, model["whole"], "D", VERMILLION, "no early exit")
        axes.set_xlim(left=0)
    for index, criterion in enumerate(criteria):
        colour, mark = SERIES[index % len(SERIES)]
        axes_list[0].plot([], [], mark, color=colour, label=criterion, linestyle="none")
    legend(figure, axes_list[0])
    return figure


def _plot_reliability(model: Entry) -> Figure:
    """Plot confidence against accuracy at each exit of one model, before and after calibration."""
    figure, axes_list = panels(model["exits"], "confidence", "accuracy", 1.45, columns=3)
    for axes, exit_name in zip(axes_list, model["exits"], strict=True):
        axes.plot([0, 1], [0, 1], "--", color="#8b949e", linewidth=0.8)
        for (method, figures), (colour, mark) in zip(
            model["by_exit"].items(), ((VERMILLION, "D"), *SERIES), strict=False
        ):
            bins = np.array([[confidence, accuracy] for _, confidence, accuracy in figures[exit_name]["reliability"]])
            axes.plot(*bins.T, marker=mark, color=colour, markersize=2.5, linewidth=0.9, label=method)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    legend(figure, axes_list[0], 3)
    return figure


def _plot_anytime(models: list[Entry]) -> Figure:
    """Plot accuracy and share of late answers against the deadline, each model in front of all others."""
    figure, axes_list = panels(_titles(models), "deadline, ms (log)", "share of test pages")
    for axes, model in zip(axes_list, models, strict=True):
        for other in models:
            axes.plot(*_curve(other, "accuracy"), color=OTHERS, linewidth=0.8)
        axes.axhline(model["whole"]["metrics"]["accuracy"][0], color="#8b949e", linestyle=":", label="without deadline")
        axes.plot(*_curve(model, "accuracy"), "o-", color=BLUE, markersize=4, label="accuracy")
        axes.plot(*_curve(model, "late"), "s--", color=VERMILLION, markersize=3, linewidth=1, label="late answers")
        axes.set(xscale="log", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter("{x:g}")
    legend(figure, axes_list[0], 3)
    return figure


def _curve(model: Entry, key: str) -> tuple[list[float], list[float]]:
    return [point["deadline_ms"] for point in model["anytime"]], [point[key] for point in model["anytime"]]
