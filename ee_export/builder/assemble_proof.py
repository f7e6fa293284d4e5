"""Golden pages of brought graphs, and the proof that a package of them answers as they do."""

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
"""Held-out pages of the proof, beside batches of arrays that no page made."""
_SIZES = ((2, 17), (3, 64), (5, 33))
"""Pages and tokens of those batches."""


def golden_pages(made: Assembly, probe: Probe, inputs: PackageInputs) -> list[golden.GoldenPage]:
    """Pages without a document, with little text, some, and all that is read, and a drawn page, with the logits they must give.

    A package of arrays has arrays of random numbers.
    """
    if not inputs.encodings:
        return [
            golden.GoldenPage(each, made.reference(each)) for each in (probe.arrays(1, 1, seed) for seed in range(3))
        ]
    synthetic: list[Arrays] = [{}, {}, {}]
    for name, encoding in inputs.encodings.items():
        longest, rows = max(2, encoding.max_text_tokens), encoding.vocab_size or 1
        pages = golden.synthetic_inputs(encoding.image_size, (2, max(2, longest // 4), longest), max(rows, 6))
        for arrays, page in zip(synthetic, pages, strict=True):
            page["input_ids"] %= rows
            arrays |= {key: values for key, values in with_prefix(name, page).items() if key in inputs.sources}
    largest = max(inputs.encodings.values(), key=lambda encoding: encoding.image_size)
    file, words = golden_page.draw(inputs.sources, largest)
    drawn = inputs.encode([golden_page.page_of(file, words, "golden page")])
    return [
        *(golden.GoldenPage(arrays, made.reference(arrays)) for arrays in synthetic),
        golden.GoldenPage(drawn, made.reference(drawn), file=file, words=words),
    ]


def require_padding(made: Assembly, probe: Probe, inputs: PackageInputs, where: str) -> None:
    """Refuse graphs that answer otherwise if a text is padded, as it is in a batch with a longer one.

    Raises:
        BadGraph: an exit's logits change.
    """
    if "text" not in inputs.sources.values() or probe.longest < 3:
        return
    batch = probe.arrays(1, min(9, probe.longest))
    tokens = min(9, probe.longest) - 1
    inputs.pad(batch, [tokens])
    alone, padded = made.reference(inputs.one_page(batch, 0, tokens)), made.reference(batch)
    for name, expected in alone.items():
        largest = float(np.abs(expected).max())
        difference = float(np.abs(padded[name] - expected).max())
        if not difference <= _tolerance(largest):
            raise BadGraph(
                f"{where}: exit '{name}': padding behind a text changes its logits by {difference:.2g}; export the graph with attention_mask, and "
                "keep padding out by it"
            )


def proven(
    chain: Chain, made: Assembly, probe: Probe, held_out: Data, inputs: PackageInputs, ocr: Ocr | None
) -> Target:
    """The target of a chain with the largest difference from the graphs that were brought, per exit and gate.

    The graphs run page by page and without padding, the chain on batches with padding, and on some held-out pages.

    Raises:
        NotEqual: a difference is larger than rounding explains.
    """
    cases: list[tuple[Arrays, list[int] | None]] = [(probe.arrays(1, probe.longest), None)]
    for at, (pages, most) in enumerate(_SIZES):
        longest = min(most, probe.longest)
        lengths = [max(1, longest * (pages - row) // pages) for row in range(pages)]
        batch = probe.arrays(pages, longest, at + 2)
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
            for name, expected in made.reference(page).items():
                difference = float(np.abs(logits[name][row] - expected[0]).max())
                worst[name] = max(worst.get(name, 0.0), difference if np.isfinite(difference) else np.inf)
                largest = max(largest, float(np.abs(expected).max()))
    tolerance = _tolerance(largest)
    differences = {name: float(f"{difference:.3g}") for name, difference in worst.items()}
    equality.require_equal(differences, tolerance)
    return replace(chain.target, tolerance=tolerance, equality=differences)


def _tolerance(largest: float) -> float:
    """Largest difference that rounding explains. It grows with the logits, which are large in some models."""
    return float(f"{equality.TOLERANCE_FP32 * max(1.0, largest / 10):.3g}")
