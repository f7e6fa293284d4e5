"""Measure the time of each segment on this machine at several text lengths, in a process that does nothing else."""

import statistics
import time
from collections.abc import Sequence

from ee_export.data.encode import Arrays
from ee_export.data.page import Page
from ee_export.data.text_reader import TextReader
from ee_export.package.manifest import Costs
from ee_export.runtime.chain import Chain
from ee_export.runtime.machine import machine_name

RUNS = 7


def measure(
    chain: Chain,
    pages: Sequence[Page] | Sequence[Arrays],
    ocr_ms: float | None,
    ocr_start_ms: float = 0.0,
    runs: int = RUNS,
) -> Costs:
    """Measure median times over ``runs`` rounds with interleaved text lengths, and of encoding on ``pages``.

    The pages of a package of arrays are rows, on which its segments are measured in turn.
    """
    manifest = chain.package.manifest
    texts = [encoding.max_text_tokens for encoding in manifest.all_encodings().values()]
    longest = max(texts, default=0)
    grid = tuple(sorted({2, longest // 8, longest // 4, longest // 2, longest} - {0, 1}))
    grid = grid if manifest.reads("text") else (1,)
    rows = [page for page in pages if not isinstance(page, Page)]
    times: dict[str, dict[int, list[float]]] = {name: {tokens: [] for tokens in grid} for name in chain.exits}
    for run in range(runs + 1):
        for tokens in grid:
            arrays = chain.blank(tokens) if manifest.encoding is not None else rows[run % len(rows)]
            for name, taken in chain.time_segments(arrays).items():
                if run:  # the first round warms up
                    times[name][tokens].append(taken)
    whole = [page for page in pages if isinstance(page, Page)]
    image_ms, text_ms = _encoding_ms(chain, "", whole)
    return Costs(
        machine=machine_name(),
        runs=runs,
        tokens=grid,
        segments_ms={
            name: tuple(round(statistics.median(by_tokens[t]), 4) for t in grid) for name, by_tokens in times.items()
        },
        encode_image_ms=image_ms,
        encode_text_ms=text_ms,
        ocr_ms=ocr_ms,
        ocr_start_ms=ocr_start_ms,
        encode_ms={name: round(sum(_encoding_ms(chain, name, whole)), 4) for name in manifest.encodings},
    )


def measure_ocr(pages: Sequence[Page], bands: Sequence[int]) -> tuple[float | None, float]:
    """Measure median milliseconds of the OCR engine for a whole page, and the time that every further strip adds.

    Args:
        pages: pages without an OCR engine are ignored. If no page has one, the time for a whole page is ``None``.
        bands: percentages of a page's height at which it is cut into strips.
    """
    whole, more = [], []
    for page in pages:
        if page.ocr is None:
            continue
        image = page.decode()
        times = []
        for cuts in ([100], [*bands, 100]):
            started = time.perf_counter()
            reader = TextReader(page, image)
            for percent in cuts:
                reader.read_to(percent)
            times.append((time.perf_counter() - started) * 1e3)
        whole.append(times[0])
        more.append(max(0.0, times[1] - times[0]) / max(1, len(bands)))
    if not whole:
        return None, 0.0
    return round(statistics.median(whole), 1), round(statistics.median(more), 1) if bands else 0.0


def _encoding_ms(chain: Chain, name: str, pages: Sequence[Page]) -> tuple[float, float]:
    """Measure median milliseconds to make an encoding's image and text inputs of a page. ``name``: of the encoding."""
    image_times, text_times = [], []
    sources = chain.package.manifest.inputs_of(name).values()
    for page in pages:
        encoder = chain.encoder.by_name(name)
        if "image" in sources:
            started = time.perf_counter()
            image, _ = encoder.open(page)
            encoder.image(image)
            image_times.append((time.perf_counter() - started) * 1e3)
        if page.words is not None and "text" in sources:
            started = time.perf_counter()
            encoder.text(*page.text(None))
            text_times.append((time.perf_counter() - started) * 1e3)
    return round(statistics.median(image_times or [0.0]), 4), round(statistics.median(text_times or [0.0]), 4)
