"""Compare a package with its source checkpoint, which transformers' own processor and model run on the same files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ee_export.data.encode import Arrays
from ee_export.data.image import IMAGE_SUFFIXES
from ee_export.data.page import Page, read_page
from ee_export.errors import BadData, NotEqual, printable
from ee_export.model.checkpoint import catch_load_errors, read_config, silence_transformers
from ee_export.model.processor import load_processor
from ee_export.model.source import family_of
from ee_export.model.source_tokenizer import boxes_of_ends
from ee_export.progress import PageProgress
from ee_export.runtime.chain import Chain

TOLERANCE = 1e-3
"""Largest difference of a logit of ``final``."""
STAGES = ("pixel_values", "input_ids", "bbox", "attention_mask", "logits", "label")


@dataclass(slots=True)
class SourceComparison:
    """Differences between a package and its source on some pages.

    ``pages``: number of compared pages. ``passed_over``: number of pages without words, which the source cannot answer.
    ``differences``: largest absolute difference per stage. ``pages_unlike``: number of pages that differ, per stage.
    ``first``: the first page that differs by more than rounding, and its first stage that does, or ``None``.
    """

    pages: int = 0
    passed_over: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    pages_unlike: dict[str, int] = field(default_factory=dict)
    first: tuple[str, str] | None = None

    def require_equal(self, name: str) -> None:
        """Raise NotEqual if a logit differs by more than :data:`TOLERANCE`, or a label at all."""
        if self.pages == 0:
            raise BadData(f"{name}: no page has words to compare; put a .json beside each image (OCR once)")
        logits, labels = self.differences.get("logits", 0.0), self.pages_unlike.get("label", 0)
        if labels or not logits <= TOLERANCE:
            page, stage = self.first or ("", "logits")
            raise NotEqual(
                f"{name}: {labels} of {self.pages} labels differ from the source's, and logits differ by up to {logits:.2g}; the first "
                f"page that differs is {printable(page)}, and its first difference is in {stage}"
            )


class SourcePipeline:
    """A fine-tuned classifier with transformers' own image processor, tokenizer and eager float32 model."""

    def __init__(self, folder: Path) -> None:
        content = read_config(folder)
        family = family_of(folder, content)
        self.inputs = family.INPUTS
        auto = AutoModelForSequenceClassification if family.reads("text") else AutoModelForImageClassification
        with catch_load_errors(folder), silence_transformers():
            self.model = auto.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", weights_only=True, local_files_only=True
            ).eval()
            self._processor = load_processor(folder) if family.reads("image") else None
            self._tokenizer = (
                AutoTokenizer.from_pretrained(folder, local_files_only=True) if family.reads("text") else None
            )

    def encode(self, page: Page, longest: int) -> Arrays:
        """Encode a page to inputs with the names of a segment's. A text has at most ``longest`` tokens."""
        result: Arrays = {}
        if self._processor is not None:
            assert isinstance(page.image, str | Path)
            with Image.open(page.image) as image:
                options = {"apply_ocr": False} if hasattr(self._processor, "apply_ocr") else {}
                result["pixel_values"] = self._processor(image.convert("RGB"), return_tensors="np", **options)[
                    "pixel_values"
                ]
        if self._tokenizer is not None:
            assert page.words is not None
            result |= self._text(list(page.words), page.boxes, longest)
        return {name: np.asarray(result[name]) for name in self.inputs}

    def _text(self, words: list[str], boxes: Any, longest: int) -> dict[str, Any]:
        assert self._tokenizer is not None
        options = {"truncation": True, "max_length": longest, "return_tensors": "np"}
        if "bbox" not in self.inputs:
            return dict(self._tokenizer(" ".join(words), **options))
        places = [list(box) for box in boxes]
        if "boxes" in self._tokenizer.__call__.__code__.co_varnames:
            return dict(self._tokenizer(words or [""], boxes=places or [[0, 0, 0, 0]], **options))
            # The tokenizer takes no boxes. Each piece gets its word's box, as in transformers' LayoutLM documentation.
        encoded = self._tokenizer(words, is_split_into_words=True, **options)
        ends = boxes_of_ends(self.model.config.model_type)
        numbers = encoded.word_ids(0)
        rows = [places[word] if word is not None else list(ends[position > 0]) for position, word in enumerate(numbers)]
        return {**encoded, "bbox": np.asarray([rows], np.int64)}

    @torch.no_grad()
    def logits(self, arrays: Arrays) -> np.ndarray:
        """Class logits float32 ``[1, C]``."""
        logits = self.model(**{name: torch.from_numpy(values) for name, values in arrays.items()}).logits
        result: np.ndarray = logits.numpy()
        return result


def compare(chain: Chain, source: SourcePipeline, paths: Sequence[Path], progress: PageProgress) -> SourceComparison:
    """Run a package and its source from the same files, and compare every stage.

    Args:
        chain: of a package that reads pages.
        source: the checkpoint.
        paths: pages, image files with their words beside them, or files of words.
        progress: called after every page.
    """
    result = SourceComparison()
    reads_image = "pixel_values" in source.inputs
    longest = chain.package.manifest.page_encoding().max_text_tokens
    for done, path in enumerate(paths):
        page = read_page(path)
        no_image = reads_image and path.suffix.lower() not in IMAGE_SUFFIXES
        if no_image or ("input_ids" in source.inputs and page.words is None):
            result.passed_over += 1
            continue
        expected = source.encode(page, longest)
        arrays = {name: values for name, values in chain.encode([page]).items() if name in source.inputs}
        expected["logits"] = source.logits(expected)
        arrays["logits"] = chain.logits(arrays)["final"]
        unlike = _compare_page(expected, arrays, result)
        result.pages += 1
        for stage in unlike:
            result.pages_unlike[stage] = result.pages_unlike.get(stage, 0) + 1
        if unlike and result.first is None:
            result.first = (str(path), unlike[0])
        progress(done + 1, len(paths))
    return result


def _compare_page(expected: Arrays, arrays: Arrays, result: SourceComparison) -> list[str]:
    """List the stages at which a page differs by more than rounding, in order, and update the largest differences."""
    unlike = []
    for stage in STAGES[:-1]:
        if stage not in expected:
            continue
        reference, values = expected[stage], arrays[stage]
        if reference.shape != values.shape:
            difference = np.inf
        else:
            difference = float(np.abs(values.astype(np.float64) - reference).max(initial=0.0))
        result.differences[stage] = max(result.differences.get(stage, 0.0), difference)
        if not difference <= {"pixel_values": 1e-5, "logits": TOLERANCE}.get(stage, 0.0):
            unlike.append(stage)
    if expected["logits"].argmax() != arrays["logits"].argmax():
        unlike.append("label")
    return unlike
