"""Make the golden pages of assembled graphs, and prove that the package gives the same logits as the graphs."""

from dataclasses import replace

import numpy as np

from ee_export.builder.assemble_inputs import PackageInputs
from ee_export.builder.predictions import read_pages
from ee_export.data import golden_page
from ee_export.data.dataset import Data
from ee_export.data.encode import Arrays
from ee_export.data.inputs import with_prefix
from ee_export.data.page import Ocr
from ee_export.errors import BadGraph
from ee_export.package.manifest import Target
from ee_export.runtime.chain import Chain
from ee_export.segments import equality
from ee_export.segments.assembly import Assembly
from ee_export.segments.graph_axes import Probe
from ee_export.verify import golden

_PAGES = 12
"""Held-out pages of the proof, beside batches of random arrays."""
_SIZES = ((2, 17), (3, 64), (5, 33))
"""Pages and tokens of the random batches."""


def make_golden_pages(assembled: Assembly, probe: Probe, inputs: PackageInputs) -> list[golden.GoldenPage]:
    """Make synthetic pages with little, some and the longest text, and a drawn page, with their expected logits.

    The golden pages of a package of arrays are random arrays.
    """
    if not inputs.encodings:
        return [
            golden.GoldenPage(arrays, assembled.reference(arrays))
            for arrays in (probe.arrays(1, 1, seed) for seed in range(3))
        ]
    synthetic: list[Arrays] = [{}, {}, {}]
    for name, encoding in inputs.encodings.items():
        longest, rows = max(2, encoding.max_text_tokens), encoding.vocab_size or 1
        pages = golden.synthetic_inputs(encoding.image_size, (2, max(2, longest // 4), longest), max(rows, 6))
        for page_arrays, page in zip(synthetic, pages, strict=True):
            page["input_ids"] %= rows
            page_arrays |= {key: values for key, values in with_prefix(name, page).items() if key in inputs.sources}
    largest = max(inputs.encodings.values(), key=lambda encoding: encoding.image_size)
    file, words = golden_page.draw(inputs.sources, largest)
    drawn = inputs.encode([golden_page.read_golden_page(file, words, "golden page")])
    return [
        *(golden.GoldenPage(page_arrays, assembled.reference(page_arrays)) for page_arrays in synthetic),
        golden.GoldenPage(drawn, assembled.reference(drawn), file=file, words=words),
    ]


def require_padding(assembled: Assembly, probe: Probe, inputs: PackageInputs, where: str) -> None:
    """Refuse graphs whose logits change if a text is padded, as in a batch with a longer text.

    Raises:
        BadGraph: an exit's logits change.
    """
    if "text" not in inputs.sources.values() or probe.longest < 3:
        return
    batch = probe.arrays(1, min(9, probe.longest))
    tokens = min(9, probe.longest) - 1
    inputs.pad(batch, [tokens])
    alone, padded = assembled.reference(inputs.one_page(batch, 0, tokens)), assembled.reference(batch)
    for name, expected in alone.items():
        largest = float(np.abs(expected).max())
        difference = float(np.abs(padded[name] - expected).max())
        if not difference <= _tolerance(largest):
            raise BadGraph(
                f"{where}: exit '{name}': padding behind a text changes its logits by {difference:.2g}; export the graph with attention_mask, and "
                "mask the padding with it"
            )


def prove_target(
    chain: Chain, assembled: Assembly, probe: Probe, held_out: Data, inputs: PackageInputs, ocr: Ocr | None
) -> Target:
    """Prove a chain equal to its source graphs, and return its target with the largest difference per exit and gate.

    The graphs run page by page without padding. The chain runs on batches with padding, and on some held-out pages.

    Raises:
        NotEqual: a difference is larger than a rounding error.
    """
    cases: list[tuple[Arrays, list[int] | None]] = [(probe.arrays(1, probe.longest), None)]
    for number, (pages, most) in enumerate(_SIZES):
        longest = min(most, probe.longest)
        lengths = [max(1, longest * (pages - row) // pages) for row in range(pages)]
        batch = probe.arrays(pages, longest, number + 2)
        inputs.pad(batch, lengths)
        cases.append((batch, lengths))
    few = held_out.subset(list(range(0, len(held_out), -(-len(held_out) // _PAGES))))
    cases += [(inputs.encode([page]), None) for page in read_pages(few, ocr)]
    worst: dict[str, float] = {}
    largest = 0.0
    for arrays, tokens in cases:
        logits = chain.logits(arrays)
        for row in range(len(next(iter(logits.values())))):
            page = inputs.one_page(arrays, row, tokens[row] if tokens else None)
            for name, expected in assembled.reference(page).items():
                difference = float(np.abs(logits[name][row] - expected[0]).max())
                worst[name] = max(worst.get(name, 0.0), difference if np.isfinite(difference) else np.inf)
                largest = max(largest, float(np.abs(expected).max()))
    tolerance = _tolerance(largest)
    differences = {name: float(f"{difference:.3g}") for name, difference in worst.items()}
    equality.require_equal(differences, tolerance)
    return replace(chain.target, tolerance=tolerance, equality=differences)


def _tolerance(largest: float) -> float:
    """Largest rounding error. It grows with the logits, which are large in some models."""
    return float(f"{equality.TOLERANCE_FP32 * max(1.0, largest / 10):.3g}")
