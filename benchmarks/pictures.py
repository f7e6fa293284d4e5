"""Draw the two pictures of the README from recorded results.

    python -m benchmarks.pictures                # docs/pictures/time.svg and docs/pictures/exits.svg

`time.svg` has the mean time of a page for the chain and for what one would run instead, from `ee-bench compare` with words given and with OCR on
demand. `exits.svg` has the share of pages that exits at each exit, and what remains.
"""

from pathlib import Path

import click
import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

from ee_export.bench.comparison import read
from ee_export.bench.statistics import Interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS, OTHERS, INK, PALE = "#0f766e", "#94a3b8", "#1e293b", "#ccfbf1"
NAMES = {
    "chain": "ee-export",
    "chain@cpu-int8": "ee-export, int8",
    "nested_if": "nested If, one graph",
    "openvino": "OpenVINO, bfloat16",
    "openvino_f32": "OpenVINO, float32",
    "onnxruntime": "onnxruntime",
}
STYLE = {
    "svg.hashsalt": "ee-export",
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
}


@click.command(help=__doc__)
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "pictures", help="Folder of the pictures."
)
@click.option("--format", "suffix", type=click.Choice(["svg", "png"]), default="svg", show_default=True)
def main(out: Path, suffix: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        draw_time(out / f"time.{suffix}")
        draw_exits(out / f"exits.{suffix}")


def draw_time(path: Path) -> None:
    """Bars of the mean time of a page, words given on the left, OCR on demand on the right."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for axes, file, title in zip(
        panels,
        ("compare_test.json", "compare_test_ocr.json"),
        ("words given", "OCR measured too"),
        strict=True,
    ):
        contenders = read(RESULTS / file).contenders
        draw_bars(axes, {NAMES[name]: contenders[name].mean_ms for name in NAMES if name in contenders})
        axes.set_title(f"A page, {title}", loc="left", fontsize=11)
    save(figure, path)


def draw_bars(axes: Axes, times: dict[str, Interval]) -> None:
    """A bar a name: its mean and the interval, in milliseconds, the fastest on top."""
    names = sorted(times, key=lambda name: times[name][0], reverse=True)
    for place, name in enumerate(names):
        mean, low, high = times[name]
        axes.barh(place, mean, color=OURS if name.startswith("ee-export") else OTHERS, height=0.66)
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
        axes.text(high, place, f"  {mean:,.1f} ms" if mean < 100 else f"  {mean:,.0f} ms", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.25 * max(high for _, _, high in times.values()))
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def draw_exits(path: Path) -> None:
    """The way of all pages through the exits: a band as high as the share that remains, and what exits at each."""
    chain = read(RESULTS / "compare_test.json").contenders["chain"]
    names = [name for name in chain.stages_ms if name in chain.exits or name in ("text", "encoder.1")]
    figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
    remaining = 1.0
    for place, name in enumerate(names):
        share = chain.exits.get(name, 0.0)
        after = remaining - share
        axes.add_patch(
            Polygon(
                [(place, 0), (place, remaining), (place + 0.62, remaining), (place + 0.62, 0)], color=PALE, linewidth=0
            )
        )
        axes.add_patch(
            Polygon(
                [(place + 0.62, 0), (place + 0.62, after), (place + 1, after), (place + 1, 0)], color=PALE, linewidth=0
            )
        )
        if share:
            axes.add_patch(
                Polygon(
                    [
                        (place + 0.62, after),
                        (place + 0.62, remaining),
                        (place + 0.86, remaining),
                        (place + 0.86, after),
                    ],
                    color=OURS,
                    linewidth=0,
                )
            )
        axes.text(place + 0.05, -0.05, name, va="top", weight="bold")
        axes.text(place + 0.05, -0.14, f"{share:.1%} exit" if share else "evaluated only", va="top", fontsize=9.5)
        axes.text(place + 0.05, -0.22, f"{remaining:.1%} reach it", va="top", fontsize=9.5, color="#475569")
        remaining = after
    axes.annotate(
        "OCR, top 40 %\nof the page",
        (1.0, 0.19),
        (1.05, 0.6),
        arrowprops={"arrowstyle": "->", "color": INK},
        fontsize=9.5,
    )
    axes.set_xlim(-0.05, len(names))
    axes.set_ylim(-0.3, 1.02)
    axes.set_title("Where 194 pages exit: most need neither their text nor the encoder", loc="left", fontsize=11)
    axes.axis("off")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, facecolor="white", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
