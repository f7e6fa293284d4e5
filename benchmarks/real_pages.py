"""The shipped sample on real pages: accuracy and exits with words given, and wall-clock time with OCR run on demand.

    python benchmarks/real_pages.py ../shared/data [--package samples/documents.ee] [--repeats 3]

DATA has `pages/test/<class>/…` with words, and `fullres/<class>-<id>.jpg` without. The second and third part use the
pages of `fullres` and the test images without their words. The chain and the full model classify every page in turn,
from the image file to the label, in an order shuffled with a seed. The full model reads the text of every page with
Tesseract.
"""

import json
import platform
from collections import Counter
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import ee_export
from ee_export.bench.statistics import spread
from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page
from ee_export.runtime.machine import machine_name

out = Console(highlight=False, markup=False, soft_wrap=True)


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--package",
    default="samples/documents.ee",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Package folder.",
)
@click.option("--repeats", default=3, show_default=True, help="Rounds over the pages at full resolution.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(data: Path, package: Path, repeats: int, record: Path | None) -> None:
    """Measure PACKAGE on the real pages in DATA."""
    chain = ee_export.load(package, one_pool=True)
    full = chain.at("full")
    result = {"machine": machine_name(), "python": platform.python_version()}
    result["words_given"] = words_given(chain, full, data / "pages" / "test")
    paths = sorted((data / "fullres").glob("*.jpg"))
    labels = [path.stem.rsplit("-", 1)[0] for path in paths]
    result["ocr_on_demand"] = ocr_on_demand(chain, full, paths, labels, "at full resolution", repeats)
    test = read_dataset(data / "pages" / "test", chain.labels)
    labels = [test.labels[target] for target in test.targets]
    result["test_by_ocr"] = ocr_on_demand(chain, full, list(test.paths), labels, "of test, words withheld", 1)
    if record:
        record.write_text(json.dumps(result, indent=1) + "\n")


def words_given(chain: ee_export.Chain, full: ee_export.Chain, folder: Path) -> dict[str, object]:
    """Measure accuracy, exits and model time on labelled pages with words."""
    test = read_dataset(folder, chain.labels)
    labels = [test.labels[target] for target in test.targets]
    pages = [test.page(index) for index in range(len(test))]
    answers, full_answers = [], []
    for page in track(pages, "words given"):
        answers.append(chain.predict(page))
        full_answers.append(full.predict(page))
    right = sum(answer.label == label for answer, label in zip(answers, labels, strict=True))
    full_right = sum(answer.label == label for answer, label in zip(full_answers, labels, strict=True))
    exits = Counter(answer.exit for answer in answers)
    before_text = sum(exits[name] for name in chain.exits if name == "vision")
    times = (
        np.array([answer.latency_ms for answer in answers]),
        np.array([answer.latency_ms for answer in full_answers]),
    )
    out.print(f"{len(pages)} test pages, words given; {machine_name()}")
    out.print(
        f"right answers: chain {right} ({right / len(pages):.4f}), full model {full_right} ({full_right / len(pages):.4f})"
    )
    out.print("exits: " + ", ".join(f"{name} {exits[name] / len(pages):.1%}" for name in chain.exits if exits[name]))
    out.print(f"exited before OCR: {before_text / len(pages):.1%}")
    out.print(
        f"mean {times[0].mean():.2f} ms a page, file to label; full model {times[1].mean():.2f} ms; ratio {times[0].mean() / times[1].mean():.3f}"
    )
    return {
        "pages": len(pages),
        "right": right,
        "whole_right": full_right,
        "exits": dict(exits),
        "before_text": before_text / len(pages),
        "mean_ms": times[0].mean(),
        "whole_mean_ms": times[1].mean(),
    }


def ocr_on_demand(
    chain: ee_export.Chain, full: ee_export.Chain, paths: list[Path], labels: list[str], description: str, repeats: int
) -> dict[str, object]:
    """Measure the time from image file to label with OCR on demand, and with OCR on every page for the full model."""
    ocr = ee_export.tesseract()
    rng = np.random.default_rng(0)
    times = {"chain": np.zeros((repeats, len(paths))), "whole": np.zeros((repeats, len(paths)))}
    answers: dict[str, dict[Path, ee_export.Answer]] = {"chain": {}, "whole": {}}
    for repeat in track(range(repeats), "OCR on demand"):
        for index in rng.permutation(len(paths)):
            for name in rng.permutation(["chain", "whole"]):
                runner = chain if name == "chain" else full
                answer = runner.predict(Page(paths[index], ocr=ocr))
                times[name][repeat, index] = answer.latency_ms
                answers[name][paths[index]] = answer
    table = Table(
        "page",
        "chain",
        "exit",
        "ms",
        "full model",
        "ms",
        title=f"{len(paths)} pages {description}, {repeats} times each",
        title_justify="left",
    )
    right = dict.fromkeys(answers, 0)
    for index, (path, label) in enumerate(zip(paths, labels, strict=True)):
        for name in answers:
            right[name] += answers[name][path].label == label
        first, second = answers["chain"][path], answers["whole"][path]
        row = [f"{np.median(times[name][:, index]):.1f}" for name in ("chain", "whole")]
        table.add_row(path.name, first.label, first.exit, row[0], second.label, row[1])
    if len(paths) < 50:
        out.print(table)
    left = Counter(answer.exit for answer in answers["chain"].values())
    out.print(
        f"{len(paths)} pages {description}: "
        + ", ".join(f"{name} {left[name] / len(paths):.1%}" for name in chain.exits)
    )
    means = {name: values.mean(axis=1) for name, values in times.items()}
    ratio = means["chain"] / means["whole"]
    ocr_pages = sum(answer.ocr_used for answer in answers["chain"].values())
    out.print(
        f"right answers: chain {right['chain']}, full model {right['whole']} of {len(paths)}; OCR run for {ocr_pages} pages against {len(paths)}"
    )
    out.print(
        f"mean a page, ms: chain {spread(means['chain'])}, full model with OCR on every page {spread(means['whole'])}; ratio {spread(ratio)}"
    )
    return {
        "pages": len(paths),
        "repeats": repeats,
        "right": right["chain"],
        "whole_right": right["whole"],
        "ocr_pages": ocr_pages,
        "mean_ms": means["chain"].mean(),
        "whole_mean_ms": means["whole"].mean(),
        "ratio": ratio.tolist(),
    }


if __name__ == "__main__":
    main()
