"""What the user has: a page image, and its words and boxes now or on demand; or words alone."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ee_export.errors import BadPage, NoText
from ee_export.image import IMAGE_SUFFIXES, Source, decode_image
from ee_export.limits import DEFAULT_LIMITS, Limits
from ee_export.resize import Square

Words = list[str]
Boxes = list[list[int]]
Ocr = Callable[[Image.Image], tuple[Sequence[str], Sequence[Sequence[float]]]]


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One page to classify.

    ``image``: a PIL image, a numpy array, the bytes of an image file, or its path; see :func:`~ee_export.image.decode_image`. It is
    decoded when the page is predicted, a file turned upright, an image or an array taken as it stands. ``words`` and ``boxes`` (x0, y0, x1, y1 in 0–1000 of the page's width and height): the page's text where it
    is known; a page with no words is a normal page, ``words=[]``. ``ocr``: a callable that is given the decoded page and
    returns words and boxes; it is called only if the page is still undecided when its text is needed. ``name`` stands in
    error messages. ``limits``: the largest image and word file that are read. A page for a model that reads words alone needs neither image nor boxes.

    Raises:
        BadPage: words and boxes differ in number, a box is not four numbers in 0–1000, or there are neither image nor words.
    """

    image: Source | None = None
    words: Sequence[str] | None = None
    boxes: Sequence[Sequence[float]] | None = None
    ocr: Ocr | None = None
    name: str = "page"
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.name == "page" and isinstance(self.image, str | Path):
            object.__setattr__(self, "name", str(self.image))
        if self.image is None and self.words is None:
            raise BadPage(f"{self.name}: neither an image nor words; a page has one of them at least")
        if self.image is None and self.words is not None and self.boxes is None:
            words, _ = check_text(self.words, [(0, 0, 0, 0)] * len(self.words), self.name)
            object.__setattr__(self, "words", words)
            return
        if (self.words is None) != (self.boxes is None):
            raise BadPage(f"{self.name}: words and boxes go together; one of them is missing")
        if self.words is not None and self.boxes is not None:
            words, boxes = check_text(self.words, self.boxes, self.name)
            object.__setattr__(self, "words", words)
            object.__setattr__(self, "boxes", boxes)

    def decoded(self) -> Image.Image:
        """The page's picture: 8 bits, mode ``L`` or ``RGB``, a file's turned upright; see :func:`~ee_export.image.decode_image`.

        Raises:
            BadPage: there is no image, or it is missing, damaged, too large, or not understood.
        """
        return decode_image(self._source(), self.name, self.limits)[0]

    def reduced(self, square: Square) -> tuple[Image.Image, bool]:
        """The page's picture for a reader that resizes it to ``square`` anyway, and whether it has all pixels and colours.

        See :func:`~ee_export.image.decode_image`. Raises as :meth:`decoded`.
        """
        return decode_image(self._source(), self.name, self.limits, square)

    def _source(self) -> Source:
        if self.image is None:
            raise BadPage(f"{self.name}: words alone, and the model reads the page's image; give it one")
        return self.image

    def text(self, image: Image.Image | None) -> tuple[Words, Boxes]:
        """Words and boxes, read with ``ocr`` now where they were not given; all boxes 0 where nobody knows them.

        Raises:
            NoText: there are neither words nor an OCR engine.
            BadPage: the OCR engine returned words and boxes that do not fit together.
        """
        if self.words is not None:  # checked and normalised on construction
            boxes = [[0, 0, 0, 0]] * len(self.words) if self.boxes is None else self.boxes
            return self.words, boxes  # type: ignore[return-value]
        if self.ocr is None:
            raise NoText(
                f"{self.name}: the page's text is needed, and there are neither words nor an OCR engine; put words and "
                "boxes in a .json beside the image, or install tesseract-ocr and `pip install ee_export[ocr]`"
            )
        words, boxes = self.ocr(self.decoded() if image is None else image)
        return check_text(words, boxes, f"{self.name}: OCR engine")


def check_text(words: Any, boxes: Any, name: str) -> tuple[Words, Boxes]:
    """Words and integer boxes after checking, words that are blank dropped.

    Raises:
        BadPage: not as many boxes as words, a word that is no string, or a box that is not x0, y0, x1, y1 with
            0 ≤ x0 ≤ x1 ≤ 1000 and 0 ≤ y0 ≤ y1 ≤ 1000; names the first bad one.
    """
    if isinstance(words, str) or not isinstance(words, Sequence) or not isinstance(boxes, Sequence):
        raise BadPage(f"{name}: words and boxes must be lists; see the page format in the README")
    if len(words) != len(boxes):
        raise BadPage(f"{name}: {len(words)} words but {len(boxes)} boxes; every word needs one box")
    kept_words: Words = []
    kept_boxes: Boxes = []
    for at, (word, box) in enumerate(zip(words, boxes, strict=True)):
        if not isinstance(word, str):
            raise BadPage(f"{name}: word {at} is {word!r}, not a string; words are strings")
        if not _is_box(box):
            raise BadPage(
                f"{name}: box {at} is {box!r}; expected x0, y0, x1, y1 with x0 ≤ x1 and y0 ≤ y1, numbers in 0–1000 of the "
                "page's width and height"
            )
        if word.strip():
            kept_words.append(word)
            kept_boxes.append([int(edge) for edge in box])
    return kept_words, kept_boxes


def _is_box(box: Any) -> bool:
    if isinstance(box, str | bytes) or (not isinstance(box, Sequence) and not hasattr(box, "__len__")):
        return False
    if len(box) != 4:
        return False
    for edge in box:
        if isinstance(edge, bool) or not hasattr(edge, "__float__") or not 0 <= edge <= 1000:  # NaN fails the range too
            return False
    return bool(box[0] <= box[2] and box[1] <= box[3])


def read_page(path: Path, ocr: Ocr | None = None) -> Page:
    """A page from an image file; a ``.json`` of the same name beside it gives its words, else ``ocr`` reads them.

    A ``.json`` by itself is a page of words, ``{"words": […]}``, for models that read nothing else.

    Raises:
        BadPage: there is no such file, or the JSON is not ``{"words": […], "boxes": […]}``.
    """
    if not path.is_file():
        raise BadPage(f"{path}: {'a folder, not an image file' if path.is_dir() else 'no such file'}; check the path")
    alone = path.suffix.lower() == ".json"
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return Page(path, ocr=ocr, name=str(path))
    try:
        found = json.loads(beside.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadPage(f'{beside}: not valid JSON ({error}); expected {{"words": […], "boxes": […]}}') from None
    if alone and isinstance(found, dict) and isinstance(found.get("words"), list) and "boxes" not in found:
        return Page(words=found["words"], name=str(path))
    if not isinstance(found, dict) or "words" not in found or "boxes" not in found:
        raise BadPage(
            f'{beside}: expected {{"words": […], "boxes": […]}}; remove the file to have the page read by OCR'
        )
    words, boxes = check_text(found["words"], found["boxes"], str(beside))
    return Page(None if alone else path, words=words, boxes=boxes, name=str(path))


def find_pages(path: Path, *, words_alone: bool) -> list[Path]:
    """The pages under a folder in sorted order, as :func:`page_files`; or the file itself."""
    return page_files(path.rglob("*"), words_alone=words_alone) if path.is_dir() else [path]


def page_files(files: Iterable[Path], *, words_alone: bool) -> list[Path]:
    """The pages among some files, sorted: the images, or where there is none and that will do, the ``.json`` files."""
    there = sorted(file for file in files if file.is_file())
    images = [file for file in there if file.suffix.lower() in IMAGE_SUFFIXES]
    return images or [file for file in there if words_alone and file.suffix.lower() == ".json"]


def require_known_boxes(page: Page, inputs: Mapping[str, str]) -> None:
    """Raise BadPage where a model with such inputs reads where words stand, and the page does not say it."""
    if "bbox" in inputs and page.words is not None and page.boxes is None:
        raise BadPage(
            f"{page.name}: words without boxes, and the model reads where they stand; give boxes, or an OCR engine"
        )
