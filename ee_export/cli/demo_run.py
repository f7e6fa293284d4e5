"""The work of `ee-export demo`: from the shipped sample to classified pages."""

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ee_export.cli.console import export_extra
from ee_export.data.find import Skipped, find_pages
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadRequest
from ee_export.package.manifest import FULL
from ee_export.package.store import Package, open_package
from ee_export.places import SAMPLES
from ee_export.progress import Progress
from ee_export.runtime.load import load_package
from ee_export.verify.replay import verify_package


def run_demo(sample: Path | None, target: str, point: str, engine: Ocr | None, progress: Progress) -> dict[str, Any]:
    """Verify the sample's package, and classify its pages. Export its checkpoint first if that is possible.

    ``engine`` reads the text of a page that needs it. Without one, the words beside the page are used.

    Raises:
        BadRequest: the sample is missing, or lacks the target or the operating point.
        NotEqual: the export, or this machine, differs from the golden logits.
    """
    folder = sample or SAMPLES
    for part in ("documents.ee", "pages"):
        if not (folder / part).is_dir():
            raise BadRequest(
                f"{folder / part}: no such folder of the shipped sample; name the folder `samples` of a clone, or install the package again"
            )
    package = open_package(folder / "documents.ee")
    paths = list(find_pages(folder / "pages", Skipped(), words_alone=False))
    obstacle = _find_obstacle(folder)
    with tempfile.TemporaryDirectory(prefix="ee-demo-") as scratch:
        if obstacle is None:
            with export_extra():
                from ee_export.cli.demo_export import export_again
            package = export_again(package, folder / "documents.checkpoint", target, Path(scratch), progress)
        verified = verify_package(package, target)
        rows = _classify(package, target, point, paths, engine, progress)
    chain_ms, full_ms = (sum(row[key] for row in rows) for key in ("latency_ms", "whole_model_ms"))
    right, full_right, with_text = (
        sum(row[key] for row in rows) for key in ("right", "whole_model_right", "text_asked")
    )
    worst = max(verified.differences.values())
    model = "The shipped package was verified" if obstacle else "The checkpoint was exported again and verified"
    return {
        "pages": rows,
        "golden_pages": verified.pages,
        "largest_difference": worst,
        "text_from": "words given" if engine is None else "OCR",
        "exported": obstacle is None,
        "not_exported_because": obstacle,
        "summary": "\n".join(
            [
                f"{model}: {verified.pages} golden pages replayed, logits within {worst:.0e}.",
                f"{right} of {len(rows)} pages are right, {full_right} by the full model. {len(rows) - with_text} needed no text.",
                f"{full_ms / chain_ms:.1f} times faster than the full model ({chain_ms:,.0f} ms against {full_ms:,.0f} ms).",
                *([f"Not exported again: {obstacle}."] if obstacle else []),
            ]
        ),
    }


def _find_obstacle(folder: Path) -> str | None:
    """Return the reason why the sample cannot be exported again, or ``None`` if it can."""
    has_extra = all(importlib.util.find_spec(name) for name in ("torch", "onnx"))
    if not (folder / "documents.checkpoint").is_dir():
        more = "" if has_extra else "; `pip install 'ee_export[export]'` exports models of your own"
        return f"its checkpoint is in the repository, not in the wheel{more}"
    return None if has_extra else "that needs `pip install 'ee_export[export]'`"


def _classify(
    package: Package, target: str, point: str, paths: list[Path], engine: Ocr | None, progress: Progress
) -> list[dict[str, Any]]:
    """Classify pages with an operating point and with the full model. The folder of a page names its class."""
    chain = load_package(package, target, point, one_pool=True)
    full = chain.at(FULL)
    rows: list[dict[str, Any]] = []
    for index, path in enumerate(paths):
        progress("classify", index, len(paths))
        answer, full_answer = chain.predict(_read(path, engine)), full.predict(_read(path, engine))
        label = path.parent.name
        rows.append(
            {
                "page": str(index + 1),
                "drawn_as": label,
                "label": answer.label,
                "right": answer.label == label,
                "exit": answer.exit,
                "text_asked": answer.ocr_used,
                "latency_ms": answer.latency_ms,
                "whole_model_ms": full_answer.latency_ms,
                "whole_model_label": full_answer.label,
                "whole_model_right": full_answer.label == label,
            }
        )
    progress("classify", len(paths), len(paths))
    return rows


def _read(path: Path, engine: Ocr | None) -> Page:
    """Read a page whose text is withheld until the chain needs it. It comes from the engine or from the words beside."""
    page = read_page(path)
    return replace(page, words=None, boxes=None, ocr=engine or (lambda image: (page.words or [], page.boxes or [])))
