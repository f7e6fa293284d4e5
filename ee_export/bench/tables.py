"""Tables of results that `ee-bench` prints, and a warning about disturbed measurements."""

from collections.abc import Sequence

import click
from rich.table import Table

from ee_export.bench.comparison import Comparison
from ee_export.bench.machine import MachineReport, describe_disturbance
from ee_export.bench.messages import CHAIN
from ee_export.bench.results import (
    Latency,
    LatencyFigures,
    Loading,
    Offline,
    ScenarioResult,
    Server,
    ServerBound,
    SingleStream,
    Tally,
)
from ee_export.bench.stages import READ, sort_stages
from ee_export.bench.statistics import Interval
from ee_export.cli.console import out


def warn(environment: MachineReport) -> None:
    """Print a warning on stderr if the machine was busy."""
    disturbance = describe_disturbance(environment)
    if disturbance is not None:
        click.echo(f"ee-bench: {disturbance}", err=True)


def print_scenario(result: ScenarioResult) -> None:
    """Print a result of SingleStream, Server or Offline."""
    plan, work, outcome = result.plan, result.work, result.outcome
    kind = {"pages": "pages of", "recorded": "encoded inputs of"}[work.kind]
    text = "" if work.kind == "recorded" else ", OCR on demand" if work.ocr else ", words given"
    out.print(
        f"{result.scenario}: {result.package}, {result.target}, {_count(result.threads, 'thread')}; "
        f"{result.environment.machine}; {work.pages} {kind} {work.source}{text}"
    )
    least = f"at least {plan.min_queries:,} pages and {plan.min_seconds:g} s"
    if isinstance(outcome, SingleStream):
        rule = f"one page after the other, drawn with replacement; {least}"
    elif isinstance(outcome, Server):
        rule = (
            f"Poisson arrivals, latency from arrival to answer, {_count(plan.streams, 'worker')}, batches of up to "
            f"{plan.max_batch}; {least} a trial"
        )
    else:
        rule = f"all pages at once, re-batched before every segment into batches of at most {plan.batch}; {least}, whole passes"
    out.print(f"{rule}; {plan.warm_up} to warm up before; 95 % intervals")
    if isinstance(outcome, SingleStream):
        _print_stream(outcome)
    elif isinstance(outcome, Server):
        _print_server(outcome)
    else:
        _print_offline(outcome)


def _print_stream(outcome: SingleStream) -> None:
    contenders = outcome.contenders
    columns = {
        name: {**_latencies(figures.latency, "p90", "p50", "p99", "mean"), "pages": f"{figures.queries:,}"}
        for name, figures in contenders.items()
    }
    _print_columns("latency", columns, [figures.tally for figures in contenders.values()])
    _print_ratio(outcome)


def _print_server(outcome: Server) -> None:
    columns: dict[str, dict[str, str]] = {}
    tallies: list[Tally | None] = []
    for name, figures in outcome.contenders.items():
        unloaded = _latencies(figures.unloaded, "p50", "p99")
        for owner, bound in figures.bounds.items():
            label = name if len(figures.bounds) == 1 else f"{name}, bound of {owner}"
            tallies.append(None if bound.run is None else bound.run.tally)
            columns[label] = {
                **_describe_bound(bound),
                **{f"one at a time: {figure}": value for figure, value in unloaded.items()},
            }
    _print_columns("Server", columns, tallies)
    for owner, (gain, low, high) in (outcome.ratio or {}).items():
        first, second = outcome.contenders
        descriptions = {
            "given": "the bound that was given",
            "whole": "the full model's bound",
            "own": "the bound of its own",
        }
        out.print(
            f"with {descriptions[owner]}, {first} holds {gain:.2f} [{low:.2f} – {high:.2f}] times the rate of {second}"
        )


def _describe_bound(bound: ServerBound) -> dict[str, str]:
    """Format the rate within a bound and the latencies at this rate, by heading."""
    run = bound.run
    cells = {"bound on p99, ms": f"{bound.bound_ms:.2f}"}
    if run is None:
        least = min((trial.rate for trial in bound.trials), default=None)
        cells["rate held, pages/s"] = "none: late one at a time" if least is None else f"none, not even {least:.1f}"
        return cells
    if bound.rate is None:
        cells["rate, pages/s"] = f"{run.trial.rate:.1f}, {'held' if run.trial.held else 'not held'}"
    else:
        cells["rate held, pages/s"] = f"{bound.rate:.1f} (not {bound.not_held:.1f})"
        cells["trials"] = str(len(bound.trials))
    return {**cells, **_latencies(run.latency, "p99", "p90", "p50"), "pages": f"{run.trial.queries:,}"}


def _print_offline(outcome: Offline) -> None:
    contenders = outcome.contenders
    columns = {
        name: {
            "pages/s": _interval(figures.pages_per_s),
            "pages": f"{figures.queries:,}",
            "passes": str(figures.passes),
        }
        for name, figures in contenders.items()
    }
    _print_columns("throughput", columns, [figures.tally for figures in contenders.values()])
    _print_ratio(outcome)


def _print_ratio(outcome: SingleStream | Offline) -> None:
    if outcome.ratio is not None:
        first, second = outcome.contenders
        out.print(f"{first} is {_interval(outcome.ratio)} times as fast as {second}, by the mean time of a page")


def _print_columns(title: str, figures: dict[str, dict[str, str]], tallies: Sequence[Tally | None]) -> None:
    """Print one column per contender: figures, right answers, mean milliseconds per stage, and exits of pages."""
    table = Table(title, *figures)
    _add_rows(table, list(figures.values()))
    known = [tally or Tally(exits={}, right=None, stages_ms={}) for tally in tallies]
    _add_rows(table, [{} if tally.right is None else {"right": f"{tally.right:.1%}"} for tally in known])
    _add_rows(
        table, [{stage: f"{ms:.3f} ms" if ms else "" for stage, ms in tally.stages_ms.items()} for tally in known]
    )
    _add_rows(
        table,
        [
            {f"exits at {name}": f"{share:.1%}" if share else "" for name, share in tally.exits.items()}
            for tally in known
        ],
    )
    out.print(table)


def _add_rows(table: Table, columns: Sequence[dict[str, str]]) -> None:
    """Add a section of rows without those that are empty in every column."""
    names = dict.fromkeys(name for column in sorted(columns, key=len, reverse=True) for name in column)
    for name in names:
        cells = [column.get(name, "") for column in columns]
        if any(cells):
            table.add_row(name, *cells)
    table.add_section()


def _latencies(latency: LatencyFigures, *names: str) -> dict[str, str]:
    figures = {"mean": latency.mean_ms, "p50": latency.p50_ms, "p90": latency.p90_ms, "p99": latency.p99_ms}
    return {
        f"{name}, ms": "too few pages" if (figure := figures[name]) is None else _interval(figure) for name in names
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_latency(latency: Latency) -> None:
    """Print the figures of one text length of `ee-bench exits`."""
    table = Table(
        "exits at",
        "ms",
        "of the uncut session",
        "encoder layers",
        title=f"{latency.tokens} text tokens",
        title_justify="left",
    )
    table.add_row("uncut session, all exits", str(latency.uncut_ms), "1", "")
    table.add_row("full model, last exit only", str(latency.whole_ms), "", "")
    for entry in latency.exits:
        layers = "" if entry.layers is None else f"{entry.layers:.2f}"
        table.add_row(entry.exit, str(entry.ms), str(entry.of_uncut), layers)
    out.print(table)
    if latency.embeddings_ms is not None:
        cut = "" if latency.layer_ms is None else f"{latency.layer_ms:.3f} ms cut in two, "
        out.print(
            f"before the encoder {latency.embeddings_ms} ms; one encoder layer {cut}{latency.uncut_layer_ms:.3f} ms uncut"
        )
    out.print(
        f"no early exit: {latency.chain_of_uncut} of the uncut session, {latency.chain_of_whole} of the full model; "
        f"operating point full: {latency.full_of_whole} of the full model"
    )
    out.print(f"Python outside onnxruntime: {latency.python_us_per_segment} µs a segment")


def print_comparison(result: Comparison) -> None:
    """Print a result of `ee-bench compare`."""
    subject, contenders = result.subject, result.contenders
    out.print(
        f"{subject.package}, {subject.target}, {subject.operating_point}; {result.environment.machine}; {result.pages} pages, "
        f"{'OCR by Tesseract' if result.plan.ocr else 'words given'}, {result.rounds} rounds, {subject.threads} threads each"
    )
    headings = ("mean ms", f"of {result.fastest or 'the chain'}", "p50", "p90", "p99", "load s")
    table = Table("", "right", *headings, "memory, peak MB", "on disk MB")
    for name, figures in contenders.items():
        cells = [_interval(figures.mean_ms), _interval(figures.of_fastest or figures.of_chain, 3)]
        cells += [
            "too few" if percentile is None else f"{percentile[0]:.2f}"
            for percentile in (figures.p50_ms, figures.p90_ms, figures.p99_ms)
        ]
        memory = f"{figures.rss_mb:.0f}, {figures.peak_mb:.0f}"
        table.add_row(name, str(figures.right), *cells, f"{figures.load_s:.2f}", memory, f"{figures.size_mb:.1f}")
    out.print(table)
    for name, figures in contenders.items():
        stages = ", ".join(
            f"{stage} {figures.stages_ms[stage]:.2f}" for stage in sort_stages(figures.stages_ms, result.stages)
        )
        out.print(f"{name}, ms a page: {stages}")
    if result.fastest is not None:
        without_reading = {name: figures.mean_ms[0] - figures.stages_ms[READ] for name, figures in contenders.items()}
        ratios = ", ".join(
            f"{name} {ms:.2f} ({ms / without_reading[result.fastest]:.3f})" for name, ms in without_reading.items()
        )
        out.print(f"without reading and decoding, ms a page (of {result.fastest}): {ratios}")
    exits = ", ".join(f"{name} {share:.1%}" for name, share in contenders[CHAIN].exits.items())
    out.print(f"the chain's pages exit at: {exits}")


def _interval(figure: Interval, digits: int = 2) -> str:
    middle, low, high = figure
    return f"{middle:.{digits}f} [{low:.{digits}f} – {high:.{digits}f}]"


def print_loading(loading: Loading, loads: int) -> None:
    """Print time and memory of loading."""
    table = Table(
        "loading",
        "package",
        "full model",
        "ratio",
        title=f"{loads} loads in fresh processes, in turn",
        title_justify="left",
    )
    for heading, figure in (
        ("seconds", loading.load_s),
        ("memory, MB", loading.rss_mb),
        ("peak memory, MB", loading.peak_mb),
    ):
        table.add_row(heading, str(figure.package), str(figure.uncut), str(figure.ratio))
    out.print(table)
