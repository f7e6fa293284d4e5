"""One self-contained HTML page of what `ee-bench compare` found: figures in words, a table, and plots; no network."""

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ee_export.bench.machine import disturbed
from ee_export.bench.peers import CHAIN, PEERS, entry
from ee_export.bench.report_plots import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SERIES,
    SKY,
    VERMILLION,
    drawing,
    environment,
    exit_colours,
    legend,
    panels,
    point,
    svg,
)
from ee_export.bench.stages import ENCODE, MODEL, OCR, READ, REST, in_order, is_segment, order_of, reached
from ee_export.policy.certify import upper_bound

_OWN = {READ: SKY, ENCODE: BLUE, OCR: ORANGE, MODEL: GREEN, REST: "#8b949e"}
_OLDER = (PURPLE, VERMILLION, "#000000")
_MARKS = "os^vPXD"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

Entry = dict[str, Any]


def render(result: Entry) -> str:
    """The HTML page of a result, as :func:`ee_export.bench.compare.read` gives it."""
    order = order_of(result)
    contenders = {
        name: {
            **found,
            "accuracy": _accuracy(found["right"], result["pages"]),
            "by_kind": _by_kind(found["stages_ms"], order),
        }
        for name, found in result["contenders"].items()
    }
    chain = contenders[CHAIN]
    kinds = in_order({kind for found in contenders.values() for kind in found["by_kind"]}, order)
    whole = [name for name in contenders if entry(name).whole]
    colours = exit_colours(in_order(chain["exits"], order))
    with drawing():
        plots = {
            "latencies": svg("latencies", _latencies(contenders)),
            "accuracies": svg("accuracies", _accuracies(contenders)),
            "waterfall": svg("waterfall", _waterfall(chain, order)),
            "stages": svg("stages", _stacks(contenders, kinds)),
        }
    templates = environment()
    templates.filters["digits"] = _digits
    return templates.get_template("compare_report.html.j2").render(
        result=result,
        name=Path(result["subject"]["package"]).name,
        contenders=contenders,
        chain=chain,
        fastest=min(whole, key=lambda name: contenders[name]["mean_ms"][0], default=None),
        early=[name for name in contenders if name != CHAIN and entry(name).early],
        told={name: _told(name) for name in contenders if name != CHAIN},
        longest=max(chain["stages_ms"], key=chain["stages_ms"].get),
        reached=partial(reached, order=order),
        kinds=kinds,
        adds_up=all(_adds_up(found) for found in contenders.values()),
        exits=list(colours),
        colours=colours,
        busy=disturbed(result),
        plots=plots,
    )


def _accuracy(right: int, pages: int) -> list[float]:
    """Share of right answers with its exact 95 % interval, after Clopper and Pearson, 1934."""
    return [right / pages, 1 - upper_bound(pages - right, pages, 0.025), upper_bound(right, pages, 0.025)]


def _by_kind(stages: dict[str, float], order: list[str]) -> dict[str, float]:
    """Milliseconds by stage, the chain's segments together as what they are together: the model."""
    found: dict[str, float] = {}
    for stage, ms in stages.items():
        kind = MODEL if is_segment(stage, order) else stage
        found[kind] = found.get(kind, 0.0) + ms
    return found


def _told(name: str) -> str:
    """What a contender is, as a sentence."""
    kind, target, exit_name = entry(name)
    said = (PEERS[kind].__doc__ or "").replace("``", "") if kind in PEERS else "The chain."
    said += f" Target {target}." if target else ""
    return said + (f" Every page leaves at {exit_name}, all exits before asked." if exit_name else "")


def _adds_up(found: Entry) -> bool:
    mean = found["mean_ms"][0]
    return bool(abs(sum(found["stages_ms"].values()) - mean) < 0.005 * mean)


def _digits(value: float) -> int:
    """Places after the point that a time, or what it is printed with, is worth: three figures in all."""
    return 2 if value < 10 else 1 if value < 100 else 0


def _short(value: float) -> str:
    return f"{value:.{_digits(value)}f}"


def _series(contenders: dict[str, Entry]) -> dict[str, tuple[str, str]]:
    """Colour and mark of every contender; the chain's are the first, and of 42 no two have both."""
    return {name: (SERIES[at % len(SERIES)][0], _MARKS[at % len(_MARKS)]) for at, name in enumerate(contenders)}


def _latencies(contenders: dict[str, Entry]) -> Figure:
    """Share of pages answered within a time."""
    figure, (axes,) = panels([""], "ms a page (log)", "share of pages answered", 2.6)
    for (name, (colour, _)), dash in zip(_series(contenders).items(), _DASHES * len(contenders), strict=False):
        width = 2.2 if name == CHAIN else 1.3
        axes.ecdf(contenders[name]["pages_ms"], label=name, color=colour, linestyle=dash, linewidth=width)
    axes.set_ylim(0, 1.02)
    times = [ms for found in contenders.values() for ms in found["pages_ms"]]
    _log_ms(axes, min(times), max(times))
    legend(figure, axes, 3)
    return figure


def _accuracies(contenders: dict[str, Entry]) -> Figure:
    """Accuracy against mean time, both with their intervals."""
    figure, (axes,) = panels([""], "mean ms a page (log)", "accuracy", 2.6)
    for name, (colour, mark) in _series(contenders).items():
        point(axes, contenders[name]["mean_ms"], contenders[name]["accuracy"], mark, colour, name, 7)
    ends = [end for found in contenders.values() for end in found["mean_ms"]]
    _log_ms(axes, min(ends), max(ends))
    legend(figure, axes, 3)
    return figure


def _log_ms(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of times that says 2 and 5, or 3 where it is too long for that, between powers of ten."""
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _waterfall(chain: Entry, order: list[str]) -> Figure:
    """The chain's mean time stage by stage, each beginning where the one before it ends."""
    stages = in_order(chain["stages_ms"], order)
    total = sum(chain["stages_ms"].values())
    figure, axes = _bars([_labelled(stage, chain["exits"], order) for stage in stages] + ["sum"])
    colours = _colours(chain["by_kind"])
    begin = 0.0
    for row, stage in enumerate(stages):
        ms = chain["stages_ms"][stage]
        axes.barh(row, ms, left=begin, color=colours[MODEL if is_segment(stage, order) else stage], height=0.7)
        _at_the_right(axes, row, _short(ms), _percent(ms / total))
        begin += ms
        axes.plot([begin, begin], [row - 0.35, row + 1.35], color="#8b949e", linewidth=0.6)
    axes.barh(len(stages), total, color="#59636e", height=0.7)
    _at_the_right(axes, len(stages), _short(total), _percent(1))
    axes.set_xlim(0, total)
    return figure


def _labelled(stage: str, exits: dict[str, float], order: list[str]) -> str:
    share = reached(stage, exits, order)
    return stage if share > 0.9995 else f"{stage} ({_percent(share, 1 if share < 0.1 else 0)})"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _stacks(contenders: dict[str, Entry], kinds: list[str]) -> Figure:
    """Every contender's mean time, its stages side by side."""
    figure, axes = _bars(list(contenders))
    colours = _colours(kinds)
    for kind in kinds:
        axes.barh(0, 0, color=colours[kind], label=kind)
    for row, found in enumerate(contenders.values()):
        begin = 0.0
        for kind in kinds:
            ms = found["by_kind"].get(kind, 0.0)
            axes.barh(row, ms, left=begin, color=colours[kind], height=0.7)
            begin += ms
        _at_the_right(axes, row, _short(begin))
    axes.set_xlim(left=0)
    legend(figure, axes, 3)
    return figure


def _bars(rows: list[str]) -> tuple[Figure, Axes]:
    """Horizontal bars, the first row on top, on one scale of milliseconds."""
    figure, (axes,) = panels([""], "mean ms a page", "", 0.28 * len(rows))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _at_the_right(axes: Axes, row: int, *columns: str) -> None:
    for at, words in enumerate(columns):
        axes.annotate(
            words,
            (1, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(36 + 34 * at, 0),
            textcoords="offset points",
            ha="right",
            va="center",
        )


def _colours(kinds: Any) -> dict[str, str]:
    """Of the kinds of stages; those that only older results name get what is left."""
    older = iter(_OLDER)
    return {kind: _OWN.get(kind) or next(older, "#000000") for kind in kinds}
