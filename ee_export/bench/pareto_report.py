"""One self-contained HTML page of a study's figures: what they say, tables and plots; readable on a phone, no network."""

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

NEVER: Entry = {"calibration": "–", "criterion": "–", "thresholds": "never leaving early", "frontier": [], "bars": {}}
"""What names a run of the whole model as if it were a policy."""


def render(result: Entry) -> str:
    """The HTML page of :func:`ee_export.bench.pareto.run`'s figures."""
    models = _models(result["models"])
    picks = _picks(models)
    chosen = picks["unshown"]["model"]
    choices = _choices(result["gains"], models)
    colours = exit_colours(_exits_of(models))
    exits = list(colours)
    with drawing():
        plots = {
            "frontiers": svg("frontiers", _frontiers(models)),
            "policies": svg("policies", _policies(chosen)),
            "reliability": svg("reliability", _reliability(chosen)),
            "anytime": svg("anytime", _anytime(models)),
        }
    templates = environment()
    templates.filters["signed"] = signed
    templates.globals.update(verdict=verdict, span=span, shade=_shade, by_method=_by_method, brought=_brought)
    return templates.get_template("pareto_report.html.j2").render(
        result=result,
        models=models,
        picks=picks,
        chosen=chosen,
        against_whole=[(policy, _paired(policy, chosen["whole"])) for policy in sorted(chosen["ran"], key=_ms)],
        left_out=_left_out(models),
        exits=exits,
        colours=colours,
        choices=choices,
        slow=sum(_ms(policy) > 1.1 * _ms(model["whole"]) for model in models for policy in model["ran"]),
        auroc=_auroc(models, exits),
        plots=plots,
    )


def _exits_of(models: list[Entry]) -> tuple[str, ...]:
    """The exits of all models, in the order of a trunk that has them all."""
    names = {name for model in models for name in model["exits"]}
    return order_exits(names, max((int(name[8:]) for name in names if name.startswith("encoder.")), default=0))


def verdict(interval: list[float]) -> int:
    """1 or −1 where a difference's interval ``[mean, low, high]`` lies above or below zero, else 0: nothing shown."""
    _, low, high = interval
    return int(low > 0) - int(high < 0)


def signed(value: float, digits: int, factor: float = 1) -> str:
    """A difference with its sign, none for what rounds to zero."""
    rounded = round(value * factor, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def span(intervals: Iterable[list[float]]) -> tuple[float, float]:
    """The lowest and the highest end of intervals and zero: what a row of interval marks is drawn on."""
    ends = [0.0, *(end for interval in intervals for end in interval)]
    return min(ends), max(max(ends), min(ends) + 1e-9)


def _models(found: list[Entry]) -> list[Entry]:
    """Each model with its name, number and the policies that it could run; without any, it never leaves early."""
    keys = ("placement", "head", "strategy")
    differ = [key for key in keys if len({model[key] for model in found}) > 1] or ["placement"]
    models = []
    for number, model in enumerate(found, 1):
        ran = [policy for policy in model["policies"] if "metrics" in policy] or [{**NEVER, **model["whole"]}]
        name, full = (", ".join(model[key] for key in of) for of in (differ, keys))
        models.append({**model, "number": number, "name": name, "full": full, "ran": ran, "first": ran[0]})
    return models


def _picks(models: list[Entry]) -> Entry:
    """The most accurate whole model, and the cheapest policies of any model that hold against it on the same pages.

    ``even`` is right at least as often; ``unshown``: that it is right less often cannot be shown with 95 % confidence.
    """
    best = min(models, key=lambda model: (-sum(model["whole"]["pages"]["right"]), _ms(model["whole"])))
    whole = best["whole"]
    tried = [(model, policy) for model in models for policy in model["ran"]] + [(best, {**NEVER, **whole})]
    tried.sort(key=lambda each: _ms(each[1]))

    def first(holds: Callable[[Entry], bool]) -> Entry:
        model, policy = next(each for each in tried if holds(each[1]))
        return {"model": model, "policy": policy, "right": _paired(policy, whole)}

    return {
        "best": best,
        "tried": len(tried) - 1,
        "even": first(lambda policy: sum(policy["pages"]["right"]) >= sum(whole["pages"]["right"])),
        "unshown": first(lambda policy: verdict(_paired(policy, whole)) >= 0),
    }


def _ms(run: Entry) -> float:
    return float(run["metrics"]["mean_ms"][0])


def _paired(one: Entry, base: Entry) -> list[float]:
    """How much more often one run is right than another on the same pages: mean, and 95 % interval."""
    return paired_difference(one["pages"]["right"], base["pages"]["right"])


def _left_out(models: list[Entry]) -> dict[str, list[int]]:
    """Why policies were left out: the reason, and the numbers of their models."""
    found: dict[str, list[int]] = {}
    for model in models:
        for policy in model["policies"]:
            if "left_out" in policy and model["number"] not in found.setdefault(policy["left_out"], []):
                found[policy["left_out"]].append(model["number"])
    return found


def _choices(gains: list[Entry], models: list[Entry]) -> list[Entry]:
    """Paired differences by what is compared: what differs, and the models where it was tried."""
    by_name = {model["full"]: model for model in models}
    groups: dict[tuple[str, str], list[Entry]] = {}
    for gain in gains:
        if gain["choice"] == "model":
            full, base = gain["of"].split(" against ")
            what = f"against {by_name[base]['name']}"
        else:
            what, full = gain["of"].split(": ")
        groups.setdefault((gain["choice"], what), []).append({**gain, "model": by_name[full]})
    return [{"choice": choice, "what": what, "entries": found} for (choice, what), found in groups.items()]


def _brought(choice: Entry) -> str:
    """In words: what one comparison shows, and in how many models."""
    right = _moved(choice, "right", {1: "right more often", -1: "right less often"}, 1, 100)
    ms = _moved(choice, "ms", {-1: "faster", 1: "slower"}, 1, 1)
    return f"{', '.join(right) or 'no difference in accuracy'}; {', '.join(ms) or 'none in time'}"


def _moved(choice: Entry, key: str, words: dict[int, str], digits: int, factor: float) -> list[str]:
    found = []
    for sign, word in words.items():
        hits = [entry for entry in choice["entries"] if verdict(entry[key]) == sign]
        if not hits:
            continue
        means = [entry[key][0] for entry in hits]
        extent = " to ".join(dict.fromkeys(signed(mean, digits, factor) for mean in (min(means), max(means))))
        numbers = ", ".join(str(entry["model"]["number"]) for entry in hits)
        where = f": {numbers}" if choice["choice"] == "model" else f" in {len(hits)} of {len(choice['entries'])}"
        found.append(f"{word}{where} ({extent} {'points' if key == 'right' else 'ms'})")
    return found


def _auroc(models: list[Entry], exits: list[str]) -> list[tuple[str, str, list[float | None]]]:
    """Criterion, calibration and AUROC at each exit: mean over the models where it is defined."""
    of_models = [model["auroc"] for model in models]
    methods = dict.fromkeys(method for auroc in of_models for method in auroc)
    criteria = dict.fromkeys(criterion for auroc in of_models for found in auroc.values() for criterion in found)
    table = []
    for criterion, method in itertools.product(criteria, methods):
        means: list[float | None] = []
        for name in exits:
            found = [auroc.get(method, {}).get(criterion, {}).get(name, np.nan) for auroc in of_models]
            defined = [value for value in found if not np.isnan(value)]
            means.append(float(np.mean(defined)) if defined else None)
        table.append((criterion, method, means))
    return table


def _by_method(model: Entry, exit_name: str, key: str) -> list[float]:
    """A figure of one exit under each calibration."""
    return [found[exit_name][key] for found in model["by_exit"].values()]


def _shade(auroc: float) -> str:
    """Background of a heat table's cell: white where a score tells nothing (0.5), blue where it tells all."""
    return f"rgba(0, 114, 178, {max(0.0, auroc - 0.5):.2f})"


def _titles(models: list[Entry]) -> list[str]:
    return [f"{model['number']} {model['name']}" for model in models]


def _frontiers(models: list[Entry]) -> Figure:
    """Each model's frontier and operating point before those of all others."""
    figure, every = panels(_titles(models), COST, ACCURACY, 2.0)
    for axes, model in zip(every, models, strict=True):
        for other in models:
            axes.plot(*_frontier(other), color=OTHERS, linewidth=0.8)
        axes.plot(*_frontier(model), color=BLUE, linewidth=1.5, label="frontier")
        _run(axes, model["first"], "o", BLUE, "operating point")
        _run(axes, model["whole"], "D", VERMILLION, "never leaving early")
        axes.set_xlim(left=0)
    legend(figure, every[0], 3)
    return figure


def _frontier(model: Entry) -> tuple[list[float], list[float]]:
    points = model["first"]["frontier"]
    return [point["mean_cost_ms"] for point in points], [point["accuracy"] for point in points]


def _run(axes: Axes, run: Entry, mark: str, colour: str, label: str) -> None:
    """A run's accuracy and time, with their intervals."""
    point(axes, run["metrics"]["mean_ms"], run["metrics"]["accuracy"], mark, colour, label)


def _policies(model: Entry) -> Figure:
    """One model's policies, a panel for each kind of thresholds; the first calibration's marks are hollow."""
    criteria, kinds, calibrations = (
        list(dict.fromkeys(policy[key] for policy in model["ran"]))
        for key in ("criterion", "thresholds", "calibration")
    )
    figure, every = panels(kinds, COST, ACCURACY)
    for axes, kind in zip(every, kinds, strict=True):
        for policy in model["ran"]:
            (y, *_), (x, *_) = policy["metrics"]["accuracy"], policy["metrics"]["mean_ms"]
            colour, mark = SERIES[criteria.index(policy["criterion"]) % len(SERIES)]
            if policy["thresholds"] != kind:
                axes.plot(x, y, mark, color=OTHERS, markersize=3)
                continue
            face = "white" if policy["calibration"] == calibrations[0] and len(calibrations) > 1 else colour
            axes.plot(x, y, mark, color=colour, markerfacecolor=face, markersize=5)
        _run(axes, model["whole"], "D", VERMILLION, "never leaving early")
        axes.set_xlim(left=0)
    for at, criterion in enumerate(criteria):
        colour, mark = SERIES[at % len(SERIES)]
        every[0].plot([], [], mark, color=colour, label=criterion, linestyle="none")
    legend(figure, every[0])
    return figure


def _reliability(model: Entry) -> Figure:
    """Confidence against accuracy at each exit of one model, before and after calibration."""
    figure, every = panels(model["exits"], "confidence", "accuracy", 1.45, columns=3)
    for axes, exit_name in zip(every, model["exits"], strict=True):
        axes.plot([0, 1], [0, 1], "--", color="#8b949e", linewidth=0.8)
        for (method, found), (colour, mark) in zip(
            model["by_exit"].items(), ((VERMILLION, "D"), *SERIES), strict=False
        ):
            bins = np.array([[said, hit] for _, said, hit in found[exit_name]["reliability"]])
            axes.plot(*bins.T, marker=mark, color=colour, markersize=2.5, linewidth=0.9, label=method)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    legend(figure, every[0], 3)
    return figure


def _anytime(models: list[Entry]) -> Figure:
    """Accuracy and share of late answers against the deadline, each model before all others."""
    figure, every = panels(_titles(models), "deadline, ms (log)", "share of test pages")
    for axes, model in zip(every, models, strict=True):
        for other in models:
            axes.plot(*_curve(other, "accuracy"), color=OTHERS, linewidth=0.8)
        axes.axhline(model["whole"]["metrics"]["accuracy"][0], color="#8b949e", linestyle=":", label="without deadline")
        axes.plot(*_curve(model, "accuracy"), "o-", color=BLUE, markersize=4, label="accuracy")
        axes.plot(*_curve(model, "late"), "s--", color=VERMILLION, markersize=3, linewidth=1, label="late answers")
        axes.set(xscale="log", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter("{x:g}")
    legend(figure, every[0], 3)
    return figure


def _curve(model: Entry, key: str) -> tuple[list[float], list[float]]:
    return [point["deadline_ms"] for point in model["anytime"]], [point[key] for point in model["anytime"]]
