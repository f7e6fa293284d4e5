"""``python -m attacks.soak PACKAGE --pages FOLDER``: predict for long, load often, and check that memory stays flat.

Good pages and every family's odd pages alternate. Memory is the process's resident memory, sampled all along. The run fails if
the mean of the last quarter of the samples is more than the bound above that of the second quarter: the first quarter fills
caches, of words and of memory arenas, that are meant to be kept.
"""

import contextlib
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from attacks.engines import ENGINES
from attacks.family import Ground
from attacks.image_seeds import seeds
from attacks.odd_images import odd_images
from attacks.packages import check_answer
from attacks.pages import drawn_page, read_nothing, words_of_page
from attacks.word_files import word_files
from ee_export import Page, load, read_page
from ee_export.errors import EeError

BOUND_MB = 24.0
"""Growth between the two quarters that counts as noise: allocators keep freed memory in whole arenas."""

MakesPage = Callable[[], Page]


def odd_pages(folder: Path, ground: Ground) -> list[tuple[str, MakesPage]]:
    """Odd pages of every family, by name: whole and cut image files, word files, words of ever new letters, and OCR engines."""
    made: list[tuple[str, MakesPage]] = []
    for name, data in odd_images():
        made.append((name, lambda data=data: Page(data, ocr=read_nothing, name="an odd page")))  # type: ignore[misc]
    for index, (name, data) in enumerate(seeds()):
        rng = ground.rng("soak", index)
        cut = data[: rng.randrange(len(data))]
        made.append((f"{name}, cut", lambda cut=cut: Page(cut, ocr=read_nothing, name="a cut page")))  # type: ignore[misc]
        made.append((name, lambda data=data: Page(data, ocr=read_nothing, name="a page")))  # type: ignore[misc]
    for index, (name, write) in enumerate(word_files()):
        path = folder / f"page{index}.png"
        drawn_page().save(path)
        write(path.with_suffix(".json"))
        made.append((f"words: {name}", lambda path=path: read_page(path, read_nothing)))  # type: ignore[misc]
    for name, engine in ENGINES:
        if not name.startswith(("leaves", "closes", "deletes", "recurses")):
            made.append((f"engine: {name}", lambda engine=engine: Page(drawn_page().copy(), ocr=engine)))  # type: ignore[misc]
    numbers = itertools.count()
    for length in (5, 50, 5000):  # words never seen before: a cache of words must have a bound
        made.append((f"new words of {length} letters", lambda length=length: _new_words(next(numbers), length)))  # type: ignore[misc]
    return made


def _new_words(number: int, length: int) -> Page:
    words = [f"{number:x}{index:x}".ljust(length, chr(0x61 + index % 26)) for index in range(200)]
    return Page(drawn_page(), words, [[1, 1, 9, 9]] * len(words), name="a page of new words")


def good_pages(folder: Path | None) -> list[MakesPage]:
    """Up to 200 pages of a folder, read again at every use, and a drawn page."""
    makers: list[MakesPage] = [lambda: Page(drawn_page(), *words_of_page(), name="a good page")]
    if folder is not None:
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".tif"})
        step = max(1, len(images) // 200)
        makers += [lambda path=path: read_page(path, read_nothing) for path in images[::step]]  # type: ignore[misc]
    return makers


def resident_mb() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def predictions(
    package: Path, pages: Path | None, number: int, seed: int, scratch: Path
) -> tuple[list[float], dict[str, int], dict[str, int]]:
    """Predict ``number`` pages, every second an odd one. Returns the samples of memory, the counts of outcomes, and
    untyped exceptions."""
    ground = Ground(package, scratch, seed)
    chain = load(package, operating_point="full", threads=1)
    folder = scratch / "words"
    folder.mkdir()
    good, odd = good_pages(pages), odd_pages(folder, ground)
    tally = {"answered": 0, "refused": 0, "untyped": 0}
    untyped: dict[str, int] = {}
    samples = []
    for index in range(number):
        name, make = ("a good page", good[index // 2 % len(good)]) if index % 2 else odd[index // 2 % len(odd)]
        try:
            check_answer(chain, chain.predict(make()))
            tally["answered"] += 1
        except EeError:
            tally["refused"] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            tally["untyped"] += 1
            key = f"{type(error).__name__}: {name}"
            untyped[key] = untyped.get(key, 0) + 1
        if index % max(1, number // 200) == 0:
            samples.append(resident_mb())
    return samples, tally, untyped


def loads(package: Path, number: int) -> list[float]:
    """Open the package, predict a page, and drop it, ``number`` times. Returns the samples of memory."""
    samples = []
    page = Page(drawn_page(), *words_of_page(), name="a good page")
    for index in range(number):
        chain = load(package, threads=1)
        check_answer(chain, chain.predict(page))
        del chain
        if index % 2:  # every second time sessions are dropped before the next load, else they are shared
            gc.collect()
        if index % max(1, number // 200) == 0:
            samples.append(resident_mb())
    return samples


def growth_mb(samples: list[float]) -> float:
    """Mean of the last quarter of the samples minus that of the second quarter."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    return sum(late) / len(late) - sum(early) / len(early)


def curve(samples: list[float]) -> str:
    """Ten points of the samples, first and last included."""
    places = [round(index * (len(samples) - 1) / 9) for index in range(10)]
    return "  ".join(f"{samples[index]:.0f}" for index in places)


@click.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pages", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of good pages.")
@click.option("--predictions", "number", default=20_000, show_default=True, help="Pages to predict.")
@click.option("--loads", "cycles", default=1_000, show_default=True, help="Times to load the package and drop it.")
@click.option("--bound-mb", default=BOUND_MB, show_default=True, help="Largest growth of memory.")
@click.option("--seed", default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    package: Path, pages: Path | None, number: int, cycles: int, bound_mb: float, seed: int, as_json: bool
) -> None:
    """Predict for long, load often, and check that memory stays flat. Exit status 1: it grows, or a page got no typed answer."""
    result: dict[str, Any] = {}
    started = time.perf_counter()
    with _quiet_codecs(), tempfile.TemporaryDirectory(prefix="ee-soak-") as scratch:
        samples, tally, untyped = predictions(package.resolve(), pages, number, seed, Path(scratch))
        result["predictions"] = {"pages": number, **tally, "growth_mb": growth_mb(samples), "resident_mb": samples}
        result["untyped"] = untyped
        samples = loads(package.resolve(), cycles)
        result["loads"] = {"cycles": cycles, "growth_mb": growth_mb(samples), "resident_mb": samples}
    result["seconds"] = time.perf_counter() - started
    result["flat"] = all(result[name]["growth_mb"] <= bound_mb for name in ("predictions", "loads"))
    if as_json:
        click.echo(json.dumps(result))
    else:
        for name, line in _lines(result):
            click.echo(f"{name}: {line}")
    sys.exit(0 if result["flat"] and not tally["untyped"] else 1)


def _lines(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("predictions", "loads"):
        part = result[name]
        counts = ", ".join(
            f"{part[key]} {key}" for key in ("pages", "answered", "refused", "untyped", "cycles") if key in part
        )
        yield name, f"{counts}; resident MB {curve(part['resident_mb'])}; growth {part['growth_mb']:+.1f} MB"
    for name, count in sorted(result["untyped"].items(), key=lambda entry: -entry[1])[:20]:
        yield "untyped", f"{count} x {name}"
    yield "memory", "flat" if result["flat"] else "grows"


@contextlib.contextmanager
def _quiet_codecs() -> Iterator[None]:
    """Keep the output of image codecs on stderr, a line for each odd page, out of the report."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if __name__ == "__main__":
    main()
