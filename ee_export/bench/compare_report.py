"""The HTML report of `ee-bench compare`: one self-contained page with sentences, a table and plots."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ee_export.bench.comparison import Comparison, ContenderFigures
from ee_export.bench.machine import describe_disturbance
from ee_export.bench.messages import CHAIN
from ee_export.bench.peers import PEERS, parse_contender
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
from ee_export.bench.stages import ENCODE, MODEL, OCR, READ, REST, is_segment, share_that_reaches, sort_stages
from ee_export.bench.statistics import Interval
from ee_export.policy.certify import upper_bound

_OWN = {READ: SKY, ENCODE: BLUE, OCR: ORANGE, MODEL: GREEN, REST: "#8b949e"}
_OLDER = (PURPLE, VERMILLION, "#000000")
_MARKS = "os^vPXD"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

Contenders = dict[str, ContenderFigures]


def render(result: Comparison) -> str:
    """Render the HTML page of a result."""
    order, contenders = result.stages, result.contenders
    chain = contenders[CHAIN]
    accuracies = {name: _estimate_accuracy(figures.right, result.pages) for name, figures in contenders.items()}
    by_kind = {name: _sum_by_kind(figures.stages_ms, order) for name, figures in contenders.items()}
    kinds = sort_stages({kind for sums in by_kind.values() for kind in sums}, order)
    full_models = [name for name in contenders if parse_contender(name).is_full_model]
    colours = exit_colours(sort_stages(chain.exits, order))
    with drawing():
        plots = {
            "latencies": svg("latencies", _plot_latencies(contenders)),
            "accuracies": svg("accuracies", _plot_accuracies(contenders, accuracies)),
            "waterfall": svg("waterfall", _plot_waterfall(chain, order)),
            "stages": svg("stages", _plot_stacks(by_kind, kinds)),
        }
    templates = environment()
    templates.filters["digits"] = _count_digits
    return templates.get_template("compare_report.html.j2").render(
        result=result,
        name=Path(result.subject.package).name,
        contenders=contenders,
        accuracies=accuracies,
        by_kind=by_kind,
        chain=chain,
        fastest=min(full_models, key=lambda name: contenders[name].mean_ms[0], default=None),
        early=[name for name in contenders if name != CHAIN and parse_contender(name).is_early],
        descriptions={name: _describe(name) for name in contenders if name != CHAIN},
        longest=max(chain.stages_ms, key=lambda stage: chain.stages_ms[stage]),
        reached=partial(share_that_reaches, order=order),
        kinds=kinds,
        adds_up=all(_adds_up(figures) for figures in contenders.values()),
        exits=list(colours),
        colours=colours,
        busy=describe_disturbance(result.environment),
        plots=plots,
    )


def _estimate_accuracy(right: int, pages: int) -> Interval:
    """Share of right answers with its exact 95 % interval, after Clopper and Pearson, 1934."""
    return right / pages, 1 - upper_bound(pages - right, pages, 0.025), upper_bound(right, pages, 0.025)


def _sum_by_kind(stages: dict[str, float], order: list[str]) -> dict[str, float]:
    """Sum milliseconds by stage. The chain's segments together are the stage `model`."""
    sums: dict[str, float] = {}
    for stage, ms in stages.items():
        kind = MODEL if is_segment(stage, order) else stage
        sums[kind] = sums.get(kind, 0.0) + ms
    return sums


def _describe(name: str) -> str:
    """Describe a contender in a sentence."""
    kind, target, exit_name = parse_contender(name)
    text = (PEERS[kind].__doc__ or "").replace("``", "") if kind in PEERS else "The chain."
    text += f" Target {target}." if target else ""
    return text + (f" Every page exits at {exit_name}, after all exits before it." if exit_name else "")


def _adds_up(figures: ContenderFigures) -> bool:
    mean = figures.mean_ms[0]
    return abs(sum(figures.stages_ms.values()) - mean) < 0.005 * mean


def _count_digits(value: float) -> int:
    """Decimal places of a time, so that it has about three significant figures."""
    return 2 if value < 10 else 1 if value < 100 else 0


def _format_ms(value: float) -> str:
    return f"{value:.{_count_digits(value)}f}"


def _choose_series(contenders: Contenders) -> dict[str, tuple[str, str]]:
    """Choose a colour and a mark for every contender. No two of 42 contenders have the same pair."""
    return {
        name: (SERIES[index % len(SERIES)][0], _MARKS[index % len(_MARKS)]) for index, name in enumerate(contenders)
    }


def _plot_latencies(contenders: Contenders) -> Figure:
    """Plot the share of pages that are answered within a time."""
    figure, (axes,) = panels([""], "ms a page (log)", "share of pages answered", 2.6)
    for (name, (colour, _)), dash in zip(_choose_series(contenders).items(), _DASHES * len(contenders), strict=False):
        width = 2.2 if name == CHAIN else 1.3
        axes.ecdf(contenders[name].pages_ms, label=name, color=colour, linestyle=dash, linewidth=width)
    axes.set_ylim(0, 1.02)
    times = [ms for figures in contenders.values() for ms in figures.pages_ms]
    _set_log_ms(axes, min(times), max(times))
    legend(figure, axes, 3)
    return figure


def _plot_accuracies(contenders: Contenders, accuracies: dict[str, Interval]) -> Figure:
    """Plot accuracy against mean time, both with their intervals."""
    figure, (axes,) = panels([""], "mean ms a page (log)", "accuracy", 2.6)
    for name, (colour, mark) in _choose_series(contenders).items():
        point(axes, contenders[name].mean_ms, accuracies[name], mark, colour, name, 7)
    ends = [end for figures in contenders.values() for end in figures.mean_ms]
    _set_log_ms(axes, min(ends), max(ends))
    legend(figure, axes, 3)
    return figure


def _set_log_ms(axes: Axes, low: float, high: float) -> None:
    """Set a logarithmic axis of times with ticks at 2 and 5, or at 3 on a long axis, between powers of ten."""
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _plot_waterfall(chain: ContenderFigures, order: list[str]) -> Figure:
    """Plot the chain's mean time by stage. Each bar begins at the end of the one before it."""
    stages = sort_stages(chain.stages_ms, order)
    total = sum(chain.stages_ms.values())
    figure, axes = _make_bars([_label_stage(stage, chain.exits, order) for stage in stages] + ["sum"])
    colours = _choose_colours(_sum_by_kind(chain.stages_ms, order))
    begin = 0.0
    for row, stage in enumerate(stages):
        ms = chain.stages_ms[stage]
        axes.barh(row, ms, left=begin, color=colours[MODEL if is_segment(stage, order) else stage], height=0.7)
        _write_at_right(axes, row, _format_ms(ms), _format_percent(ms / total))
        begin += ms
        axes.plot([begin, begin], [row - 0.35, row + 1.35], color="#8b949e", linewidth=0.6)
    axes.barh(len(stages), total, color="#59636e", height=0.7)
    _write_at_right(axes, len(stages), _format_ms(total), _format_percent(1))
    axes.set_xlim(0, total)
    return figure


def _label_stage(stage: str, exits: dict[str, float], order: list[str]) -> str:
    share = share_that_reaches(stage, exits, order)
    return stage if share > 0.9995 else f"{stage} ({_format_percent(share, 1 if share < 0.1 else 0)})"


def _format_percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _plot_stacks(by_kind: dict[str, dict[str, float]], kinds: list[str]) -> Figure:
    """Plot every contender's mean time as stacked stages."""
    figure, axes = _make_bars(list(by_kind))
    colours = _choose_colours(kinds)
    for kind in kinds:
        axes.barh(0, 0, color=colours[kind], label=kind)
    for row, sums in enumerate(by_kind.values()):
        begin = 0.0
        for kind in kinds:
            ms = sums.get(kind, 0.0)
            axes.barh(row, ms, left=begin, color=colours[kind], height=0.7)
            begin += ms
        _write_at_right(axes, row, _format_ms(begin))
    axes.set_xlim(left=0)
    legend(figure, axes, 3)
    return figure


def _make_bars(rows: list[str]) -> tuple[Figure, Axes]:
    """Make axes for horizontal bars on one scale of milliseconds, with the first row on top."""
    figure, (axes,) = panels([""], "mean ms a page", "", 0.28 * len(rows))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _write_at_right(axes: Axes, row: int, *columns: str) -> None:
    for index, words in enumerate(columns):
        axes.annotate(
            words,
            (1, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(36 + 34 * index, 0),
            textcoords="offset points",
            ha="right",
            va="center",
        )


def _choose_colours(kinds: Collection[str]) -> dict[str, str]:
    """Choose a colour for each kind of stage. Kinds of older results get the remaining colours."""
    older = iter(_OLDER)
    return {kind: _OWN.get(kind) or next(older, "#000000") for kind in kinds}
