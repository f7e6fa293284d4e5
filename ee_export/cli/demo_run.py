"""The work of `ee-export demo`: from the shipped checkpoint to classified pages."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ee_export.builder.build import export
from ee_export.data.page import Ocr, Page
from ee_export.draw import LABELS, DrawnPage, draw_page
from ee_export.errors import BadRequest
from ee_export.model import checkpoint
from ee_export.package.manifest import FULL
from ee_export.package.store import GOLDEN, open_package
from ee_export.package.write import seal
from ee_export.places import SAMPLES
from ee_export.progress import Progress
from ee_export.runtime.load import load_package
from ee_export.verify import golden
from ee_export.verify.replay import verify_package

SEED = 900
"""With this seed, one of the pages needs its text. With most seeds, none does."""
LONG_SIDE = 1000
"""Pixels: about 90 dpi of an A4 page, the least at which Tesseract reads well."""


def run_demo(sample: Path | None, target: str, point: str, ocr: Ocr | None, progress: Progress) -> dict[str, Any]:
    """Export the sample's checkpoint again with the shipped policy, verify it, and classify drawn pages.

    Calibration and operating points come from the shipped package, because they were fitted on real pages.

    Raises:
        BadRequest: the sample is missing, or lacks the target or the operating point.
        NotEqual: the new export differs from the golden logits.
    """
    folder = sample or SAMPLES
    if not (folder / "documents.ee").is_dir():
        raise BadRequest(
            f"{folder / 'documents.ee'}: the shipped sample is not there; run in a clone, or pass --sample FOLDER"
        )
    shipped = open_package(folder / "documents.ee")
    pages, _ = golden.read(shipped)
    model, tokenizer = checkpoint.load(folder / "documents.checkpoint")
    model.keep_exits(shipped.manifest.exits)
    with tempfile.TemporaryDirectory(prefix="ee-demo-") as folder_name:
        parted = checkpoint.make_parted_model(model, tokenizer)
        exported = export(parted, [page.inputs for page in pages], Path(folder_name), "documents", progress)
        policy = shipped.target(target)
        compiled = replace(
            exported.target(target),
            costs=policy.costs,
            calibration=policy.calibration,
            operating_points=policy.operating_points,
        )
        (exported.path / GOLDEN).write_bytes(shipped.read(GOLDEN))
        package = seal(exported.path, replace(exported.manifest, targets={target: compiled}))
        verified = verify_package(package, target)
        chain = load_package(package, target, point, one_pool=True)
        full = chain.at(FULL)

        rows: list[dict[str, Any]] = []
        drawn = [
            draw_page(label, SEED + index, hard=index % 2 == 1, long_side=LONG_SIDE)
            for index, label in enumerate(LABELS)
        ]
        for index, page in enumerate(drawn):
            progress("classify", index, len(drawn))
            answer = chain.predict(_page(page, ocr))
            full_answer = full.predict(_page(page, ocr))
            rows.append(
                {
                    "page": f"{index + 1}, {'hard' if page.hard else 'easy'}",
                    "drawn_as": page.label,
                    "label": answer.label,
                    "right": answer.label == page.label,
                    "exit": answer.exit,
                    "text_asked": answer.ocr_used,
                    "latency_ms": answer.latency_ms,
                    "whole_model_ms": full_answer.latency_ms,
                    "whole_model_label": full_answer.label,
                }
            )
        progress("classify", len(drawn), len(drawn))
    chain_ms, full_ms = (sum(row[key] for row in rows) for key in ("latency_ms", "whole_model_ms"))
    with_text = sum(row["text_asked"] for row in rows)
    worst = max(verified.differences.values())
    return {
        "pages": rows,
        "golden_pages": verified.pages,
        "largest_difference": worst,
        "text_from": "OCR" if ocr is not None else "yes, given",
        "summary": (
            f"{verified.pages} golden pages replayed: logits within {worst:.0e}. {len(rows) - with_text} of {len(rows)} pages needed "
            f"no text. {full_ms / chain_ms:.1f} times faster than the whole model ({chain_ms:,.0f} ms against {full_ms:,.0f} ms)."
        ),
    }


def _page(drawn: DrawnPage, ocr: Ocr | None) -> Page:
    """A page of the drawn image. Its text comes from the OCR engine, or from the drawing if there is no engine."""
    return Page(drawn.image, ocr=ocr or (lambda image: (drawn.words, drawn.boxes)), name=drawn.label)
